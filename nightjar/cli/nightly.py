"""nightly, bisect, report: every cell of a config, one cell twice, and the nights so far in figures and pages."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import FlowCommand, add_command, add_flow, parse_options, run_flow_command
from nightjar.cli.console import Screen
from nightjar.cli.show_nights import show_bisected, show_night
from nightjar.errors import BadOptions
from nightjar.nightly.config import BisectRequest, NightRequest
from nightjar.nightly.outcomes import night_summary
from nightjar.paths import reports_folder
from nightjar.store.remote import open_store

NIGHTLY = FlowCommand(
    "nightly",
    "every cell of a config: a night, written to the history and compared with earlier nights",
    NightRequest,
    "flows.nightly:nightly",
    lambda request: str(request.file()),
    show_night,
    lambda results: 0 if results["night"]["outcome"] == "PASS" else 1,
)
BISECT = FlowCommand(
    "bisect",
    "one cell under two checkpoints or two toolchains, and what differs; 1 if WER is worse in B than in A",
    BisectRequest,
    "flows.bisect:bisect",
    lambda request: f"{request.model} → {request.target}, {request.precision}: A, then B",
    show_bisected,
    lambda results: 1 if results["wer"] is not None and results["wer"]["low"] > 0 else 0,
)


def add(commands: Any) -> None:
    """Add them to the command line."""
    nightly = add_flow(commands, NIGHTLY, _nightly)
    nightly.add_argument("--plan", action="store_true", help="print what each cell would run and why, and run nothing")
    add_flow(commands, BISECT)
    report = add_command(commands, "report", "print the last night; --site: write all nights as pages", _report)
    report.add_argument("--site", action="store_true", help="write all nights as pages that need no server")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder for the pages (default: reports/site)")


def _nightly(arguments: argparse.Namespace) -> int:
    if hasattr(arguments, "config"):
        arguments.config = arguments.config.resolve()  # relative to the current folder here, to the checkout elsewhere
    if not arguments.plan:
        return run_flow_command(NIGHTLY, arguments)
    request = parse_options(arguments, NightRequest)
    screen = Screen()
    screen.say(f"[bold]nightly[/bold] {request.file()}")
    from flows.nightly import plan_night

    screen.render("planned_night.txt", plans=plan_night(request))
    return 0


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
