"""WER against size and against speed: the cells that no other beats in both. Only the same speech is compared."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from nightjar.nightly.history import Cell
from nightjar.report.axes import Plot, axis_with_ticks, polyline
from nightjar.report.site.formatting import count, join_words, short
from nightjar.report.site.layout import render

LEFT, RIGHT, TOP, BOTTOM = 44.0, 352.0, 10.0, 196.0  # of the plot inside its 360 × 230
LETTER, LINE = 5.4, 11.0  # px of a label's letter and line, at its font size
ALIKE = 0.95  # share of the most words: with fewer, the test is not the same
DOWN = (0, -14, 14, -28, 28, -42, 42, -56, 56, -70, 70, -84, 84)  # px between a mark and its label
LABELLED = 14  # with more points there is no room for all names
SHAPES = {
    "device": "M0 -5.5a5.5 5.5 0 1 0 .01 0z",
    "host": "M-4.8 -4.8h9.6v9.6h-9.6z",
    "vendor-simulator": "M0 -6.6l6.6 6.6l-6.6 6.6l-6.6 -6.6z",
    "stand-in": "M-4.5 -4.5l9 9m0 -9l-9 9",
}


class Point(NamedTuple):
    """One cell in a plot: `x` in the unit of its axis, `y` the WER in percent."""

    x: float
    y: float
    cell: Cell


class Box(NamedTuple):
    """The area of a label or a mark in a plot."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Tell whether two boxes overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def pareto_sections(cells: Sequence[Cell]) -> list[tuple[str, Markup]]:
    """Draw the plots, a section per test speech: (its heading, its plots)."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.wer is not None and cell.size_bytes:
            groups.setdefault(cell.speech, []).append(cell)
    sections = []
    for group in sorted(groups.values(), key=len, reverse=True):
        most = max(cell.words or 0 for cell in group)
        other = [cell for cell in group if (cell.words or 0) < ALIKE * most]
        group = [cell for cell in group if cell not in other]
        if len(group) < 2:
            continue
        sizes = [Point((cell.size_bytes or 0) / 1e6, cell.wer or 0.0, cell) for cell in group]
        speeds = [Point(cell.rtf, cell.wer or 0.0, cell) for cell in group if cell.rtf]
        plots = [_plot("WER against size", "size of all parts, MB", sizes)]
        if len(speeds) > 1:
            plots.append(_plot("WER against real-time factor", "RTF end to end, p50", speeds))
        named = join_words([f"{cell.cell} ({count(cell.clips or 0, 'clip')})" for cell in other])
        body = render(
            "pareto.html",
            plots=plots,
            tiers=[(tier, shape) for tier, shape in SHAPES.items() if any(cell.tier == tier for cell in group)],
            left_out=named,
        )
        models = join_words(sorted({cell.model for cell in group}))
        sections.append((f"{models}, on {count(max(cell.clips or 0 for cell in group), 'clip')}", body))
    return sections


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that none beats in both, left to right; a failed cell and a stand-in do not count."""
    best: list[Point] = []
    real = (p for p in points if p.cell.tier != "stand-in" and p.cell.outcome != "FAIL")
    for point in sorted(real, key=lambda p: (p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def _plot(title: str, unit: str, points: Sequence[Point]) -> Markup:
    x, x_ticks = axis_with_ticks([0.0, *(point.x for point in points)], LEFT, RIGHT)
    # a cell that fails by far would flatten all others: it is drawn at the top, with its figure
    passed = [point.y for point in points if point.cell.outcome != "FAIL"]
    ceiling = 3 * max(passed) if passed and max(passed) > 0 else max(point.y for point in points)
    y, y_ticks = axis_with_ticks([0.0, *(min(point.y, ceiling) for point in points)], BOTTOM, TOP)

    def mark(point: Point) -> tuple[float, float]:
        return x.at(point.x), y.at(min(point.y, y.high))

    steps: list[tuple[float, float]] = []
    for across, down in map(mark, pareto_front(points)):
        steps += [(across, steps[-1][1]), (across, down)] if steps else [(across, down)]
    taken = [Box(across - 7, down - 7, across + 7, down + 7) for across, down in map(mark, points)]
    drawn = []
    for point in points:
        name = _name(point.cell) + (f" ↑ {point.y:.3g} %" if point.y > y.high else "")
        label = _label(*mark(point), name, taken, DOWN if len(points) <= LABELLED else DOWN[:1])
        drawn.append((point, mark(point), label))
    return render(
        "pareto.svg",
        title=title,
        unit=unit,
        points=drawn,
        shapes=SHAPES,
        front=polyline(steps) if len(steps) > 1 else "",
        plot=Plot(x, y, x_ticks, y_ticks),
    )


def _name(cell: Cell) -> str:
    board = f" {cell.board}" if cell.board else ""
    return short(f"{cell.model} {cell.target} {cell.precision}{board}", 34)


def _label(x: float, y: float, name: str, taken: list[Box], downs: Sequence[int]) -> dict[str, Any] | None:
    """Place a name beside its mark where it covers nothing that is taken, which it joins; None without room."""
    width = LETTER * len(name)
    right, left, above = x + 10, x - 10 - width, min(max(LEFT + 2, x - width / 2), RIGHT - width)
    for down in downs:
        for start in (above, right, left) if down else (right, left, above):
            box = Box(start, y + down - LINE / 2, start + width, y + down + LINE / 2)
            inside = box.left >= LEFT + 1 and box.right <= 359 and box.top >= 4 and box.bottom <= 195
            if not inside or any(box.overlaps(other) for other in taken):
                continue
            taken.append(box)
            # anchored at the mark: letters are smaller where the page is wide
            anchor, at = ("start", start) if start == right else ("end", box.right)
            if start == above:
                anchor, at = "middle", start + width / 2
            lead = ""
            if abs(down) > 14 or box.right < x - 12 or box.left > x + 12:
                lead = f"M{x} {y}L{round(min(max(x, box.left), box.right), 1)} {round(y + down, 1)}"
            return {"text": name, "anchor": anchor, "x": round(at, 1), "y": round(y + down + 3.5, 1), "lead": lead}
    return None
