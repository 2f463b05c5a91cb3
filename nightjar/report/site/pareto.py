"""WER against size and against speed: which cells nobody beats in both. Only what heard the same speech is compared."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from nightjar.nightly.history import Cell
from nightjar.report.site.charts import LEFT, RIGHT, TOP, format_tick, nice_ticks
from nightjar.report.site.formatting import count, join_words, short
from nightjar.report.site.urls import cell_url
from nightjar.report.style import environment

LETTER, LINE = 5.4, 11.0  # px of a label's letter and line, at its font size
ALIKE = 0.95  # of the words of the most: who heard less did not hear the same test
LABELLED = 14  # more points than these have no room for names
SHAPES = {
    "device": "M0 -5.5a5.5 5.5 0 1 0 .01 0z",
    "host": "M-4.8 -4.8h9.6v9.6h-9.6z",
    "vendor-simulator": "M0 -6.6l6.6 6.6l-6.6 6.6l-6.6 -6.6z",
    "stand-in": "M-4.5 -4.5l9 9m0 -9l-9 9",
}

TEMPLATES = {
    "pareto": """<figure class="chart"><figcaption>{{ title }}</figcaption>
<svg viewBox="0 0 360 230" role="img" aria-label="{{ title }} of {{ points|length }} cells">
{% for y, text in ys %}<line class="grid" x1="44" x2="352" y1="{{ y }}" y2="{{ y }}"/><text x="38" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>{% endfor %}
{% for x, text in xs %}<line class="grid" x1="{{ x }}" x2="{{ x }}" y1="10" y2="196"/><text x="{{ x }}" y="211" text-anchor="{{ "end" if loop.last else "middle" }}">{{ text }}</text>{% endfor %}
<text x="198" y="226" text-anchor="middle">{{ across }}</text><text x="48" y="20">WER, %</text>
{% if front %}<polyline class="front" points="{{ front }}"/>{% endif %}
{% for p in points %}<a href="{{ p.href }}">{% if p.lead %}<path class="lead-line" d="{{ p.lead }}"/>{% endif %}
<path class="shape f{{ p.outcome }}" transform="translate({{ p.x }} {{ p.y }})" d="{{ p.shape }}"><title>{{ p.said }}</title></path>
{% if p.label %}<text class="label" text-anchor="{{ p.anchor }}" x="{{ p.label_x }}" y="{{ p.label_y }}">{{ p.label }}</text>{% endif %}</a>{% endfor %}</svg></figure>""",
    "section": """<div class="charts">{{ plots }}</div>
<p class="key">{% for tier, shape in tiers %}<span><svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">
<path class="shape f{{ "standin" if tier == "stand-in" else "none" }}" d="{{ shape }}"/></svg>{{ tier }}</span>{% endfor %}
<span class="soft">lower left is better; the line joins what does not fail and nothing beats</span></p>
{% if note %}<p class="soft">{{ note }}</p>{% endif %}""",
}


class Point(NamedTuple):
    """One cell in a plot: `x` in the unit of its axis, `y` the WER in percent."""

    x: float
    y: float
    cell: Cell


class Box(NamedTuple):
    """What a label or a mark takes of a plot."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Tell whether two boxes overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def pareto_sections(cells: Sequence[Cell]) -> list[tuple[str, Markup]]:
    """Draw the plots, a section per test speech: (its heading, its plots)."""
    scored = [cell for cell in cells if cell.wer is not None and cell.size_bytes]
    groups: dict[str, list[Cell]] = {}
    for cell in scored:
        groups.setdefault(cell.speech, []).append(cell)
    sections = []
    for group in sorted(groups.values(), key=len, reverse=True):
        most = max(cell.words or 0 for cell in group)
        other = [cell for cell in group if (cell.words or 0) < ALIKE * most]
        group = [cell for cell in group if cell not in other]
        if len(group) < 2:
            continue
        plots = _plot("WER against size", "size of all parts, MB", _points(group, "size"))
        timed = _points(group, "rtf")
        if len(timed) > 1:
            plots += _plot("WER against real-time factor", "RTF end to end, p50", timed)
        tiers = [(tier, SHAPES[tier]) for tier in SHAPES if any(cell.tier == tier for cell in group)]
        named = join_words([f"{cell.cell} ({count(cell.clips or 0, 'clip')})" for cell in other])
        note = f"Not drawn, for they heard fewer of the clips: {named}." if other else ""
        body = _templates.get_template("section").render(plots=plots, tiers=tiers, note=note)
        models = join_words(sorted({cell.model for cell in group}))
        heard = f"{models}, on {count(max(cell.clips or 0 for cell in group), 'clip')}"
        sections.append((heard, Markup(body)))
    return sections


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that none beats in both, from left to right; what fails and what stands in beats nobody."""
    best: list[Point] = []
    real = (p for p in points if p.cell.tier != "stand-in" and p.cell.outcome != "FAIL")
    for point in sorted(real, key=lambda p: (p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def _points(cells: Iterable[Cell], axis: Literal["size", "rtf"]) -> list[Point]:
    found = []
    for cell in cells:
        x = cell.rtf if axis == "rtf" else (cell.size_bytes or 0) / 1e6
        if x and cell.wer is not None:
            found.append(Point(x, cell.wer, cell))
    return found


def _plot(title: str, across: str, points: Sequence[Point]) -> Markup:
    xticks = nice_ticks([0.0, *(point.x for point in points)])
    # one that fails by far would press all others to the floor: it stands at the ceiling, with its figure
    sane = [point.y for point in points if point.cell.outcome != "FAIL"]
    ceiling = 3 * max(sane) if sane and max(sane) > 0 else max(point.y for point in points)
    yticks = nice_ticks([0.0, *(min(point.y, ceiling) for point in points)])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + (RIGHT - LEFT) * (x - xticks[0]) / (xticks[-1] - xticks[0]), 1),
            round(196 - (196 - TOP) * (min(y, yticks[-1]) - yticks[0]) / (yticks[-1] - yticks[0]), 1),
        )

    marks = [at(point.x, point.y) for point in points]
    names = [_name(point.cell) + (f" ↑ {point.y:.3g} %" if point.y > yticks[-1] else "") for point in points]
    labels = _labels(marks, names)
    steps: list[tuple[float, float]] = []
    for point in pareto_front(points):
        x, y = at(point.x, point.y)
        if steps:
            steps.append((x, steps[-1][1]))
        steps.append((x, y))
    drawn = [
        {
            "x": x,
            "y": y,
            "shape": SHAPES.get(point.cell.tier, SHAPES["device"]),
            "outcome": "standin" if point.cell.tier == "stand-in" else point.cell.outcome,
            "href": cell_url(point.cell.cell),
            "said": f"{point.cell.cell}, tier {point.cell.tier}: WER {point.y:.2f} %, {across.split(',')[0]} {point.x:.3g}",
            **label,
        }
        for point, (x, y), label in zip(points, marks, labels, strict=True)
    ]
    return Markup(
        _templates.get_template("pareto").render(
            title=title,
            across=across,
            points=drawn,
            front=" ".join(f"{x},{y}" for x, y in steps) if len(steps) > 1 else "",
            xs=[(at(tick, yticks[0])[0], format_tick(tick, xticks)) for tick in xticks],
            ys=[(at(xticks[0], tick)[1], format_tick(tick, yticks)) for tick in yticks],
        )
    )


def _name(cell: Cell) -> str:
    board = f" {cell.board}" if cell.board else ""
    return short(f"{cell.model} {cell.target} {cell.precision}{board}", 34)


def _labels(marks: Sequence[tuple[float, float]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Place each name beside its mark where it covers neither a mark nor a name; without room it is left out."""
    taken = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in marks]
    placed: list[dict[str, Any]] = []
    for (x, y), name in zip(marks, names, strict=True):
        found: dict[str, Any] = {"label": "", "anchor": "start", "label_x": 0.0, "label_y": 0.0, "lead": ""}
        width = LETTER * len(name)
        for down in (0, -14, 14, -28, 28, -42, 42, -56, 56, -70, 70, -84, 84):
            beside, above = (x + 10, x - 10 - width), min(max(LEFT + 2, x - width / 2), RIGHT - width)
            for left in (*beside, above) if not down else (above, *beside):
                box = Box(left, y + down - LINE / 2, left + width, y + down + LINE / 2)
                inside = box.left >= LEFT + 1 and box.right <= 359 and box.top >= 4 and box.bottom <= 195
                if inside and not any(box.meets(other) for other in taken):
                    # anchored at the mark: letters are smaller where the page is wide
                    anchor = "start" if left == x + 10 else "end" if left == x - 10 - width else "middle"
                    at = {"start": box.left, "end": box.right, "middle": left + width / 2}[anchor]
                    found |= {"label": name, "anchor": anchor, "label_x": round(at, 1)}
                    found |= {"label_y": round(y + down + 3.5, 1)}
                    if abs(down) > 14 or box.right < x - 12 or box.left > x + 12:
                        near = box.left if box.left > x else box.right if box.right < x else x
                        found["lead"] = f"M{x} {y}L{round(near, 1)} {round(y + down, 1)}"
                    taken.append(box)
                    break
            if found["label"] or len(marks) > LABELLED:
                break
        placed.append(found)
    return placed


_templates = environment(TEMPLATES)
