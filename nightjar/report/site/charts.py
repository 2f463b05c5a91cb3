"""The drawings of the site as inline SVG: what became of a cell over its nights, drawn to be read on a phone."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from nightjar.nightly.history import Cell
from nightjar.report.site.formatting import day
from nightjar.report.style import environment

SHOWN = 120  # nights in a chart or a table
SPARK = 40  # nights in a sparkline
WIDTH, HEIGHT = 360.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 352.0, 10.0, 166.0  # of the plot inside

TEMPLATES = {
    "spark": """<svg class="spark" viewBox="0 0 240 44" role="img" aria-label="{{ said }}"><title>{{ said }}</title>
{% for area in areas %}<polygon class="area" points="{{ area }}"/>{% endfor %}
{% for line in lines %}<polyline class="line" points="{{ line }}"/>{% endfor %}
{% for x, y, outcome in dots %}<circle cx="{{ x }}" cy="{{ y }}" r="{{ 4 if loop.last and last else 2.6 }}" class="f{{ outcome }}"/>{% endfor %}
{% for x in lost %}<path class="lost" d="M{{ x - 3 }} 34l6 6m0 -6l-6 6"/>{% endfor %}</svg>""",
    "chart": """<figure class="chart"><figcaption>{{ title }}</figcaption>
<svg viewBox="0 0 360 190" role="img" aria-label="{{ title }} over {{ nights }} nights">
{% for y, text in ys %}<line class="grid" x1="44" x2="352" y1="{{ y }}" y2="{{ y }}"/><text x="38" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>{% endfor %}
{% if zero is not none %}<line class="zero" x1="44" x2="352" y1="{{ zero }}" y2="{{ zero }}"/>{% endif %}
{% for x, said in changes %}<line class="change" x1="{{ x }}" x2="{{ x }}" y1="10" y2="166"><title>{{ said }}</title></line>{% endfor %}
{% for area in bands %}<polygon class="band" points="{{ area }}"/>{% endfor %}
{% for x, low, high in bars %}<line class="bar" x1="{{ x }}" x2="{{ x }}" y1="{{ low }}" y2="{{ high }}"/>{% endfor %}
{% for line in lines %}<polyline class="line {{ line.look }}" points="{{ line.points }}"><title>{{ line.name }}</title></polyline>{% endfor %}
{% for dot in dots %}<circle cx="{{ dot.x }}" cy="{{ dot.y }}" r="{{ dot.r }}" class="f{{ dot.outcome }}"><title>{{ dot.said }}</title></circle>{% endfor %}
{% for x, said in lost %}<path class="lost" d="M{{ x - 3 }} 157l6 6m0 -6l-6 6"><title>{{ said }}</title></path>{% endfor %}
{% for x, text, anchor in xs %}<text x="{{ x }}" y="183" text-anchor="{{ anchor }}">{{ text }}</text>{% endfor %}
</svg>{% if key %}<p class="key">{% for line in lines if line.first %}<span><i class="{{ line.look }}"></i>{{ line.name }}</span>{% endfor %}</p>{% endif %}</figure>""",
}


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
    low, high = _spanned(scored)
    step = 228 / max(1, len(rows) - 1)
    xs = [round(6 + step * number, 1) if len(rows) > 1 else 234.0 for number in range(len(rows))]
    ys = [None if value is None else round(36 - 30 * (value - low) / (high - low), 1) for value in values]
    runs = _runs(xs, ys)
    dots = [
        (x, y, _look(row))
        for x, y, row in zip(xs, ys, rows, strict=True)
        if y is not None and (row.outcome == "FAIL" or row is rows[-1])
    ]
    said = f"WER {min(scored):.2f} to {max(scored):.2f} % over {_nights(len(rows))}" if scored else "no score yet"
    return _draw(
        "spark",
        said=said,
        lines=[" ".join(f"{x},{y}" for x, y in run) for run in runs if len(run) > 1],
        areas=[_area(run, 44.0) for run in runs if len(run) > 1],
        dots=dots,
        last=bool(ys) and ys[-1] is not None,
        lost=[x for x, y in zip(xs, ys, strict=True) if y is None],
    )


def chart(
    title: str, rows: Sequence[Cell], changes: Sequence[str], lines: Sequence[Line], zero: bool = False
) -> Markup:
    """Draw lines over the nights of a cell, empty where there is no value at all.

    changes: per night what is new in it, or empty. zero: a line at zero, which is then within the plot.
    """
    values = [value for line in lines for values in (line.values, line.low, line.high) for value in values]
    known = [value for value in values if value is not None]
    if not any(value is not None for value in lines[0].values):
        return Markup("")
    ticks = nice_ticks([*known, 0.0] if zero else known)
    low, high = ticks[0], ticks[-1]
    xs = [_x(number, len(rows)) for number in range(len(rows))]

    def up(value: float | None) -> float | None:
        return None if value is None else round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    drawn, bands, bars = [], [], []
    for line in lines:
        runs = _runs(xs, [up(value) for value in line.values])
        for number, run in enumerate(runs):
            points = " ".join(f"{x},{y}" for x, y in run)
            drawn.append({"name": line.name, "look": line.look, "points": points, "first": not number})
        if line.low:
            lows = _runs(xs, [up(value) for value in line.low])
            highs = _runs(xs, [up(value) for value in line.high])
            for under, over in zip(lows, highs, strict=True):
                if len(under) > 1:
                    bands.append(" ".join(f"{x},{y}" for x, y in [*over, *reversed(under)]))
                else:
                    bars.append((under[0][0], under[0][1], over[0][1]))
    plain = len(rows) > 60  # then only what did not pass has a dot
    dots = [
        {"x": x, "y": up(value), "r": 4 if row is rows[-1] else 2.6, "outcome": _look(row), "said": _said(row, value)}
        for x, value, row in zip(xs, lines[0].values, rows, strict=True)
        if value is not None and (not plain or row.outcome != "PASS" or row is rows[-1])
    ]
    return _draw(
        "chart",
        title=title,
        nights=len(rows),
        ys=[(up(tick), format_tick(tick, ticks)) for tick in ticks],
        zero=up(0.0) if zero else None,
        changes=[(x, said) for x, said in zip(xs, changes, strict=True) if said],
        bands=bands,
        bars=bars,
        lines=drawn,
        key=len(lines) > 1,
        dots=dots,
        lost=[(x, _said(row, None)) for x, row in zip(xs, rows, strict=True) if row.wer is None],
        xs=_days(xs, rows),
    )


def nice_ticks(values: Sequence[float], most: int = 4) -> list[float]:
    """Choose round numbers that hold all values, at most `most` steps apart, and never one alone."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    step = 10 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        first, last = math.floor(low / (step * factor) + 1e-9), math.ceil(high / (step * factor) - 1e-9)
        if last - first <= most:
            break
    return [round(number * step * factor, 10) for number in range(first, last + 1)]


def format_tick(tick: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many digits as tell it from its neighbours."""
    step = ticks[1] - ticks[0]
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:  # 2.5, 0.25
        digits += 1
    return f"{tick:.{digits}f}"


def _spanned(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of a sparkline: at least two points of WER, or it would make mountains of single clips."""
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    missing = max(0.0, 2.0 - (high - low))
    return low - missing / 2, high + missing / 2


def _x(number: int, count: int) -> float:
    return round(LEFT + (RIGHT - LEFT) * (number + 0.5) / max(1, count), 1)


def _runs(xs: Sequence[float], ys: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Part points at nights without a value: a line must not pretend to know them."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _area(run: Sequence[tuple[float, float]], floor: float) -> str:
    return " ".join(f"{x},{y}" for x, y in [(run[0][0], floor), *run, (run[-1][0], floor)])


def _look(row: Cell) -> str:
    """Name the colour of a night's dot; a stand-in's is never that of a score."""
    return "standin" if row.tier == "stand-in" else row.outcome


def _said(row: Cell, value: float | None) -> str:
    tier = f", tier {row.tier}" if row.tier else ""
    return f"{day(row.night)}: {row.outcome}{tier}" + ("" if value is None else f", {value:.3g}")


def _nights(count: int) -> str:
    return f"{count} nights" if count != 1 else "1 night"


def _days(xs: Sequence[float], rows: Sequence[Cell]) -> list[tuple[float, str, str]]:
    """Label the first, the middle and the last night."""
    if len(rows) == 1:
        return [(xs[0], day(rows[0].night), "middle")]
    few = xs[0] > LEFT + 20  # then there is room to stand below the point
    ends = ((xs[0], "middle"), (xs[-1], "middle")) if few else ((LEFT, "start"), (RIGHT, "end"))
    labels = [(x, day(row.night), anchor) for (x, anchor), row in zip(ends, (rows[0], rows[-1]), strict=True)]
    if len(rows) > 4:
        middle = len(rows) // 2
        labels.append((xs[middle], day(rows[middle].night), "middle"))
    return labels


def _draw(name: str, **values: Any) -> Markup:
    return Markup(_templates.get_template(name).render(**values))


_templates = environment(TEMPLATES)
