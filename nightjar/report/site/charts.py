"""Charts of a cell over its nights, as inline SVG."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from nightjar.nightly.history import Cell
from nightjar.report.axes import Axis, Plot, axis_with_ticks, polyline
from nightjar.report.site.formatting import count, day
from nightjar.report.site.layout import render

SHOWN = 120  # nights in a chart or a table
SPARK = 40  # nights in a sparkline
LEFT, RIGHT, TOP, BOTTOM = 44.0, 352.0, 10.0, 166.0  # of the plot inside its 360 × 190

Point = tuple[float, float]


class Line(NamedTuple):
    """One line of a chart: a value per night, None where there is none; `look` is main, soft or dash."""

    name: str
    values: Sequence[float | None]
    look: str = "main"
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def sparkline(rows: Sequence[Cell]) -> Markup:
    """Draw the WER of a cell over its last nights; a night without one is a cross."""
    rows = rows[-SPARK:]
    values = [row.wer for row in rows]
    scored = [value for value in values if value is not None]
    low, high = (min(scored), max(scored)) if scored else (0.0, 0.0)
    missing = max(0.0, 2.0 - (high - low))  # at least two points of WER, so that single clips stay small
    low, high = low - missing / 2, high + missing / 2
    x, y = Axis(0, max(1, len(rows) - 1), 6.0, 234.0), Axis(low, high, 36.0, 6.0)
    xs = [x.at(number) for number in range(len(rows))] if len(rows) > 1 else [x.end]
    runs = [run for run in _runs(xs, values, y) if len(run) > 1]
    dots = [
        _dot(at, y, row, value, rows[-1])
        for at, value, row in zip(xs, values, rows, strict=True)
        if value is not None and (row.outcome == "FAIL" or row is rows[-1])
    ]
    over = f"over {count(len(rows), 'night')}"
    return render(
        "spark.svg",
        title=f"WER {min(scored):.2f} to {max(scored):.2f} % {over}" if scored else "no score yet",
        lines=[polyline(run) for run in runs],
        areas=[polyline([(run[0][0], 44.0), *run, (run[-1][0], 44.0)]) for run in runs],
        dots=dots,
        lost=[at for at, value in zip(xs, values, strict=True) if value is None],
    )


def chart(
    title: str, rows: Sequence[Cell], changes: Sequence[str], lines: Sequence[Line], zero: bool = False
) -> Markup:
    """Draw lines over the nights of a cell; empty where there is no value at all.

    changes: what is new in each night, or empty. zero: draw a line at zero, which is then within the plot.
    """
    known = [v for line in lines for values in (line.values, line.low, line.high) for v in values if v is not None]
    if not any(value is not None for value in lines[0].values):
        return Markup("")
    y, y_ticks = axis_with_ticks([*known, 0.0] if zero else known, BOTTOM, TOP)
    x = Axis(0, max(1, len(rows)), LEFT, RIGHT)
    xs = [x.at(number + 0.5) for number in range(len(rows))]
    bands, bars = [], []
    for line in lines:
        for under, over in zip(_runs(xs, line.low, y), _runs(xs, line.high, y), strict=True):
            if len(under) > 1:
                bands.append(polyline([*over, *reversed(under)]))
            else:
                bars.append((under[0][0], under[0][1], over[0][1]))
    crowded = len(rows) > 60  # then only what did not pass has a dot
    dots = [
        _dot(at, y, row, value, rows[-1])
        for at, value, row in zip(xs, lines[0].values, rows, strict=True)
        if value is not None and (not crowded or row.outcome != "PASS" or row is rows[-1])
    ]
    return render(
        "chart.svg",
        title=title,
        nights=len(rows),
        plot=Plot(x, y, (), y_ticks),
        zero=y.at(0.0) if zero else None,
        changes=[(at, text) for at, text in zip(xs, changes, strict=True) if text],
        bands=bands,
        bars=bars,
        lines=[(line, polyline(run)) for line in lines for run in _runs(xs, line.values, y)],
        dots=dots,
        lost=[(at, _title(row)) for at, row in zip(xs, rows, strict=True) if row.wer is None],
        days=_days(xs, rows),
    )


def _runs(xs: Sequence[float], values: Sequence[float | None], y: Axis) -> list[list[Point]]:
    """Split points at nights without a value, so that no line is drawn over them."""
    runs: list[list[Point]] = [[]]
    for x, value in zip(xs, values, strict=bool(values)):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((x, y.at(value)))
    return [run for run in runs if run]


def _dot(x: float, y: Axis, row: Cell, value: float, last: Cell) -> dict[str, Any]:
    """Describe a night's dot; the colour of a stand-in is never that of a score."""
    outcome = "standin" if row.tier == "stand-in" else row.outcome
    title = f"{_title(row)}, {value:.3g}"
    return {"x": x, "y": y.at(value), "r": 4 if row is last else 2.6, "outcome": outcome, "title": title}


def _title(row: Cell) -> str:
    return f"{day(row.night)}: {row.outcome}" + (f", tier {row.tier}" if row.tier else "")


def _days(xs: Sequence[float], rows: Sequence[Cell]) -> list[tuple[float, str, str]]:
    """Label the first, the middle and the last night."""
    if len(rows) == 1:
        return [(xs[0], day(rows[0].night), "middle")]
    few = xs[0] > LEFT + 20  # then there is room below the point
    ends = ((xs[0], "middle"), (xs[-1], "middle")) if few else ((LEFT, "start"), (RIGHT, "end"))
    labels = [(x, day(row.night), anchor) for (x, anchor), row in zip(ends, (rows[0], rows[-1]), strict=True)]
    middle = len(rows) // 2
    return labels + ([(xs[middle], day(rows[middle].night), "middle")] if len(rows) > 4 else [])
