"""The first page: last night's verdict, what changed, every cell; and the page of all nights."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from nightjar.nightly.changes import parse_versions
from nightjar.nightly.history import Cell, Finding, Night
from nightjar.report.site.charts import sparkline
from nightjar.report.site.formatting import count, join_words, main_versions, split_failures
from nightjar.report.site.history_view import NightHistory, SiteData
from nightjar.report.site.layout import render
from nightjar.report.site.pareto import pareto_sections
from nightjar.report.site.urls import NIGHTS, TABLES, cell_url

OUTCOMES = {"PASS": "passed", "FAIL": "failed", "UNDECIDED": "undecided", "BROKEN": "broke", "MISSING": "could not run"}
STRIP = 60  # nights in the strip
RECENT = 14  # nights in the table below it
CHANGES = 8  # findings on the first page
MOST_NIGHTS = 2000  # on the page of all nights


def render_index(site: SiteData) -> str:
    """Return the first page."""
    history = site.history
    night = history.nights[-1]
    cells = history.by_night.get(night.night, ())
    columns = sorted({cell.target for cell in cells})
    board = []
    for model in sorted({cell.model for cell in cells}):
        slots = [[c for c in cells if (c.model, c.target) == (model, target)] for target in columns]
        tiles = [[_tile(history, cell) for cell in slot] for slot in slots if slot or len(columns) < 5]
        board.append((model, tiles))
    tonight = {cell.cell for cell in cells}
    return render(
        "index.html",
        root="",
        n=night,
        lead=night_lead(night, cells),
        failed=split_failures(night.failed, [cell.cell for cell in cells]),
        strip=_summaries(history, history.nights[-STRIP:]),
        changes=night_findings(site, night.night),
        most=CHANGES,
        nights=len(history.nights),
        columns=columns,
        board=board,
        gone=[rows[-1] for name, rows in history.by_cell.items() if name not in tonight],
        pareto=pareto_sections(cells),
        recent=_summaries(history, history.nights[: -RECENT - 1 : -1]),
        all=NIGHTS,
        tables=TABLES,
    )


def render_nights(history: NightHistory) -> str:
    """Return the page of all nights, newest first."""
    rows = _summaries(history, history.nights[: -MOST_NIGHTS - 1 : -1])
    return render("nights.html", root="", rows=rows, more=len(history.nights) - len(rows))


def night_lead(night: Night, cells: Sequence[Cell]) -> str:
    """Write in one sentence how many cells of a night passed, failed and so on."""
    counted = [cell for cell in cells if cell.counts]
    numbers = {word: sum(cell.outcome == outcome for cell in counted) for outcome, word in OUTCOMES.items()}
    parts = [f"{number} {word}" for word, number in numbers.items() if number]
    standins = sum(cell.tier == "stand-in" for cell in cells)
    others = len(cells) - len(counted) - standins
    rest = [count(number, noun) for number, noun in ((standins, "stand-in"), (others, "other")) if number]
    not_counted = f"; {join_words(rest)} not counted" if rest else ""
    if not parts:
        return f"No cell that counts{not_counted}."
    if len(parts) == 1 and len(counted) > 1:
        return f"All {len(counted)} cells {parts[0].partition(' ')[2]}{not_counted}."
    cells_text = count(len(counted), "cell") if len(counted) != 1 else "one cell"
    return f"Of {cells_text}, {join_words(parts)}{not_counted}."


def night_findings(site: SiteData, night: str) -> list[dict[str, Any]]:
    """List a night's findings for a page: regressions first, then improvements, then mere differences."""
    known = {cell.cell for cell in site.history.by_night.get(night, ())}
    found = [
        {
            **finding.model_dump(),
            "text": _text(finding),
            "better": _better(finding),
            "href": cell_url(finding.cell) if finding.cell in known else "",
            "diff": site.diffs.get((finding.cell, night, finding.other), ""),
        }
        for finding in site.history.findings.get(night, ())
    ]
    return sorted(found, key=lambda f: (not f["regression"], not f["better"], f["against"] == "best", f["cell"]))


def _text(finding: Finding) -> str:
    """Return a finding's sentence without the cell and the causes, which stand beside it."""
    text = finding.sentence.removeprefix(finding.cell).lstrip(": ").partition("; likely cause: ")[0]
    return text.rstrip(".") + "."


def _better(finding: Finding) -> bool:
    """Tell an improvement from a mere difference."""
    if finding.regression:
        return False
    if finding.kind == "outcome":
        return finding.after == "PASS"
    return finding.kind == "wer" and finding.high is not None and finding.high < 0


def _tile(history: NightHistory, cell: Cell) -> Markup:
    rows = history.by_cell[cell.cell]
    streak = next((n for n, row in enumerate(reversed(rows)) if row.outcome != cell.outcome), len(rows))
    return render(
        "tile.html",
        c=cell,
        spark=sparkline(rows),
        last=next((row for row in reversed(rows) if row.wer is not None), None),
        streak=streak if streak < len(rows) else 0,
        versions=main_versions(parse_versions(cell.versions), cell.target),
    )


def _summaries(history: NightHistory, nights: Sequence[Night]) -> list[tuple[Night, int]]:
    """Pair nights with their number of regressions."""
    return [(night, sum(each.regression for each in history.findings.get(night.night, ()))) for night in nights]
