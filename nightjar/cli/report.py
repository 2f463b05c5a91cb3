"""report: print the last night, or write all nights as a site."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import add_command
from nightjar.cli.console import Screen
from nightjar.cli.show_nights import show_night
from nightjar.errors import BadOptions
from nightjar.nightly.outcomes import night_summary
from nightjar.paths import reports_folder
from nightjar.store.remote import open_store


def add(commands: Any) -> None:
    """Add it to the command line."""
    report = add_command(commands, "report", "print the last night; --site: write all nights as pages", _report)
    report.add_argument("--site", action="store_true", help="write all nights as pages that need no server")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder for the pages (default: reports/site)")


def _report(arguments: argparse.Namespace) -> None:
    from nightjar.nightly.history import History  # pandas
    from nightjar.report.site.build import write_site
    from nightjar.report.site.history_view import read_history

    if arguments.out is not None and not arguments.site:
        raise BadOptions("--out is the folder of --site: add --site")
    history, screen = History(), Screen()
    past = read_history(history)
    if past.nights:
        night = past.nights[-1]
        cells, findings = past.by_night.get(night.night, ()), past.findings.get(night.night, ())
        results = {
            "night": night.model_dump(),
            "cells": [cell.model_dump() for cell in cells],
            "findings": [finding.model_dump() for finding in findings],
            "sentence": night_summary(night, cells, findings),
        }
        show_night(screen, results)
    else:
        screen.say(f"no night yet in {history.folder}: `nightjar nightly` makes one")
    if arguments.site:
        out = arguments.out or reports_folder() / "site"
        written = write_site(history, open_store(), out)
        screen.say(f"{written.pages} pages of {written.nights} nights, {written.made} of them new: {written.first}")
