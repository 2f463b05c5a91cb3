"""The page of one night: its verdict, what failed, its findings, and every cell beside the night before."""

from typing import Any

from nightjar.report.site.formatting import short_dates, split_failures
from nightjar.report.site.history_view import SiteData
from nightjar.report.site.index_page import night_findings, night_lead
from nightjar.report.site.layout import render
from nightjar.report.site.urls import cell_url, night_url

FINDINGS = 200  # on a page


def render_night(site: SiteData, number: int) -> tuple[str, bool]:
    """Return the page of the `number`th night, and whether the store still had all of it."""
    night = site.history.nights[number]
    cells = site.history.by_night.get(night.night, ())
    not_passed = [cell for cell in cells if cell.outcome in ("FAIL", "UNDECIDED")]
    lost = site.stored.lost_verdicts(not_passed)
    found = night_findings(site, night.night)
    versions: dict[str, list[str]] = {}
    for cell in cells:
        versions.setdefault(cell.versions, []).append(cell.cell)
    rows = [{**site.row(cell, site.history.before(cell)), "href": cell_url(cell.cell)} for cell in cells]
    page = render(
        "night.html",
        root="../",
        n=night,
        lead=night_lead(night, cells),
        failed=[short_dates(text) for text in split_failures(night.failed, [cell.cell for cell in cells])],
        open=[
            {
                "cell": cell.cell,
                "href": cell_url(cell.cell),
                "standin": cell.tier == "stand-in",
                "gates": [gate["sentence"] for gate in site.stored.gates(cell.judge)] or [cell.error],
            }
            for cell in not_passed
            if cell.outcome == "UNDECIDED" or not cell.counts
        ],
        lost=[cell.cell for cell in lost],
        found=found[:FINDINGS],
        found_more=max(0, len(found) - FINDINGS),
        rows=[{**row, "new": row["new"] if row["before"] else "new in the history"} for row in rows],
        versions=list(versions.items()),
        before=_neighbour(site, number - 1),
        after=_neighbour(site, number + 1),
    )
    return page, not lost


def _neighbour(site: SiteData, number: int) -> dict[str, Any] | None:
    if not 0 <= number < len(site.history.nights):
        return None
    name = site.history.nights[number].night
    return {"night": name, "href": night_url(name)}
