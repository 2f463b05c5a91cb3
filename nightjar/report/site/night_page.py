"""The page of one night: its verdict, what failed, its findings, and every cell beside the night before."""

from nightjar.report.site.formatting import split_failures
from nightjar.report.site.history_view import SiteData
from nightjar.report.site.index_page import night_findings, night_lead
from nightjar.report.site.layout import render

FINDINGS = 200  # on a page


def render_night(site: SiteData, number: int) -> tuple[str, bool]:
    """Return the page of the `number`th night, and whether the store still had all of it."""
    nights = site.history.nights
    night = nights[number]
    cells = site.history.by_night.get(night.night, ())
    not_passed = [cell for cell in cells if cell.outcome in ("FAIL", "UNDECIDED")]
    lost = site.stored.lost_verdicts(not_passed)
    versions: dict[str, list[str]] = {}
    for cell in cells:
        versions.setdefault(cell.versions, []).append(cell.cell)
    page = render(
        "night.html",
        root="../",
        n=night,
        lead=night_lead(night, cells),
        failed=split_failures(night.failed, [cell.cell for cell in cells]),
        open=[
            (cell, [gate["sentence"] for gate in site.stored.gates(cell.judge)] or [cell.error])
            for cell in not_passed
            if cell.outcome == "UNDECIDED" or not cell.counts
        ],
        lost=[cell.cell for cell in lost],
        found=night_findings(site, night.night),
        most=FINDINGS,
        rows=[site.row(cell, site.history.before(cell)) for cell in cells],
        versions=versions,
        before=nights[number - 1] if number else None,
        after=nights[number + 1] if number + 1 < len(nights) else None,
    )
    return page, not lost
