"""report: what the nights came to, the last one here, all of them as a site."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.commands import EXIT_CODES


def add(commands: Any) -> None:
    """Add it to the command line."""
    report = commands.add_parser(
        "report", help="the last night in figures; --site: all nights as pages", epilog=EXIT_CODES
    )
    report.add_argument("--site", action="store_true", help="write the history as pages that work from a file")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder for the pages (default: reports/site)")
    report.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    from nightjar.closure import ROOT
    from nightjar.errors import BadOptions
    from nightjar.history import History
    from nightjar.remote import open_store
    from nightjar.show import Screen
    from nightjar.site.past import read_past
    from nightjar.site.write import write_site

    if arguments.out is not None and not arguments.site:
        raise BadOptions("--out says where --site writes: add --site")
    history, screen = History(), Screen()
    past = read_past(history)
    if past.nights:
        _show_night(screen, past)
    else:
        screen.say(f"no night yet in {history.folder}: `nightjar nightly` makes one")
    if arguments.site:
        out = arguments.out or ROOT / "reports" / "site"
        written = write_site(history, open_store(), out)
        screen.say(f"{written.pages} pages of {written.nights} nights, {written.made} of them new: {written.first}")
    return 0


def _show_night(screen: Any, past: Any) -> None:
    """Print the last night: its verdict, what failed, what was found, and every cell."""
    from rich.markup import escape
    from rich.table import Table

    from nightjar.show import COLOURS
    from nightjar.site.scoreboard import lead
    from nightjar.site.words import megabytes, sentences, when

    night = past.nights[-1]
    cells = past.by_night.get(night.night, ())
    screen.say(
        f"[bold {COLOURS[night.outcome]}]{night.outcome}[/]  the night of {when(night.night)}: {lead(night, cells)}"
    )
    for said in sentences(night.failed, [cell.cell for cell in cells]):
        screen.console.print(f"  {said}", markup=False)
    for finding in past.findings.get(night.night, ()):
        mark = "regression" if finding.regression else "change"
        causes = f" ({finding.causes})" if finding.causes else ""
        screen.console.print(f"  {mark}: {finding.cell}: {finding.sentence}{causes}", markup=False)
    table = Table(box=None, padding=(0, 2))
    for column in ("cell", "verdict", "tier", "WER %", "Δ", "95 %", "size", "RTF p50"):
        table.add_column(column, justify="left" if column in ("cell", "verdict", "tier") else "right", no_wrap=True)
    for cell in cells:
        colour = COLOURS.get(cell.outcome, "red") if cell.tier != "stand-in" else "dim"
        whole = cell.low is not None and cell.high is not None
        table.add_row(
            escape(cell.cell),
            f"[{colour}]{cell.outcome}[/]",
            escape(cell.tier or "–"),
            f"{cell.wer:.2f}" if cell.wer is not None else "–",
            f"{cell.delta_wer:+.2f}" if cell.delta_wer is not None else "–",
            f"[{cell.low:+.2f}, {cell.high:+.2f}]" if whole else "–",
            megabytes(cell.size_bytes),
            f"{cell.rtf:.3f}" if cell.rtf is not None else "–",
        )
    screen.console.print(table)
