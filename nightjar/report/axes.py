"""Axes of the plots: values to pixels, round ticks, and what templates/axes.svg draws of them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Axis(NamedTuple):
    """A linear axis: value `low` is at pixel `start`, value `high` at pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)


class Plot(NamedTuple):
    """Two axes and the ticks on them: (pixel, label)."""

    x: Axis
    y: Axis
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """Write points as SVG's `points` attribute."""
    return " ".join(f"{x},{y}" for x, y in points)


def nice_ticks(values: Sequence[float], most: int = 4) -> list[float]:
    """Choose at least two round numbers that enclose all values, at most `most` steps apart."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    step = 10 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        first, last = math.floor(low / (step * factor) + 1e-9), math.ceil(high / (step * factor) - 1e-9)
        if last - first <= most:
            break
    return [round(number * step * factor, 10) for number in range(first, last + 1)]


def axis_with_ticks(values: Sequence[float], start: float, end: float) -> tuple[Axis, list[tuple[float, str]]]:
    """Make an axis that ends at round numbers, with its ticks."""
    ticks = nice_ticks(values)
    axis = Axis(ticks[0], ticks[-1], start, end)
    digits = max(len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return axis, [(axis.at(tick), f"{tick:.{digits}f}") for tick in ticks]
