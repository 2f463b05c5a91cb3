"""The page of one cell: all its nights."""

from collections.abc import Sequence

from markupsafe import Markup

from nightjar.nightly.history import Cell
from nightjar.report.site.charts import SHOWN, Line, chart
from nightjar.report.site.formatting import day
from nightjar.report.site.history_view import SiteData
from nightjar.report.site.index_page import night_findings
from nightjar.report.site.layout import render
from nightjar.report.site.urls import night_url

FINDINGS = 40  # on a page


def render_cell(site: SiteData, cell: str) -> str:
    """Return a cell's page."""
    every = site.history.by_cell[cell]
    tonight = every[-1]
    befores: list[Cell | None] = [None, *every[:-1]]
    rows = [site.row(row, before) for row, before in zip(every[-SHOWN:], befores[-SHOWN:], strict=True)]
    found = [
        {**finding, "href": night_url(finding["night"]), "cell": day(finding["night"])}
        for row in reversed(every)
        for finding in night_findings(site, row.night)
        if finding["cell"] == cell
    ]
    report = site.report(tonight)
    lost = [f"report/{tonight.report}"] if tonight.report and not report else []
    return render(
        "cell.html",
        root="../",
        c=tonight,
        last=next((row for row in reversed(every) if row.wer is not None), None),
        gates=site.stored.gates(tonight.judge),
        links=[
            (report, "the full report"),
            (site.diff(tonight, site.history.best(tonight)), "tonight against the best"),
            (site.diff(tonight, site.history.before(tonight)), "tonight against the night before"),
            (night_url(tonight.night), "the whole night"),
        ],
        lost=lost + [f"judge/{row.judge}" for row in site.stored.lost_verdicts([tonight])],
        rows=rows[::-1],
        charts=_charts(every[-SHOWN:], [row["new"] for row in rows]),
        more=len(every) - len(rows),
        found=found,
        most=FINDINGS,
    )


def _charts(rows: Sequence[Cell], changes: Sequence[str]) -> list[Markup]:
    intervals = [(row.low, row.high) if None not in (row.low, row.high) else (None, None) for row in rows]
    delta = Line("Δ WER", [row.delta_wer for row in rows], "main", *zip(*intervals, strict=True))
    rates = [
        Line("binary", [row.wer for row in rows]),
        Line("float graphs", [row.wer_float for row in rows], "soft"),
        Line("stock", [row.wer_stock for row in rows], "dash"),
    ]
    size = Line("size", [row.size_bytes / 1e6 if row.size_bytes else None for row in rows])
    speed = Line("RTF", [row.rtf for row in rows])
    return [
        chart("Δ WER against float, points", rows, changes, [delta], zero=True),
        chart("WER, %", rows, changes, rates),
        chart("Size of all parts, MB", rows, changes, [size]),
        chart("Real-time factor, p50", rows, changes, [speed]),
    ]
