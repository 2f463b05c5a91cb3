"""The report's section on a precision search: the int8 share of each measured rung against its loss."""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from nightjar.report.axes import Axis, Plot, polyline
from nightjar.report.rendering import render

LEAST_KL = 1e-5  # nats: smaller divergences are noise


def search_section(search: Mapping[str, Any]) -> Markup:
    """Return the report's section on a search; `search` as in pareto.json."""
    points = [_point(point, search["taken"]) for point in search["points"]]
    powers = [math.log10(max(point["kl"], LEAST_KL)) for point in points]
    floor = math.floor(min(powers))
    ceiling = max(floor + 1, math.ceil(max(powers)))
    x, y = Axis(0, 1, 64.0, 624.0), Axis(floor, ceiling, 236.0, 16.0)
    for point, power in zip(points, powers, strict=True):
        point |= {"x": x.at(point["share"]), "y": y.at(power)}
    best = sorted((point for point in points if not point["dominated"]), key=lambda point: point["share"])
    return render(
        "search.html",
        points=points,
        parts=dict.fromkeys(part for point in points for part in point["shares"] if part != "total"),
        best=polyline((point["x"], point["y"]) for point in best),
        plot=Plot(
            x,
            y,
            [(x.at(percent / 100), str(percent)) for percent in range(0, 101, 20)],
            [(y.at(power), f"1e{power}") for power in range(floor, ceiling + 1)],
        ),
    )


def _point(point: Mapping[str, Any], taken: Mapping[str, float]) -> dict[str, Any]:
    shares = point["int8_mac_share"]
    delta = "" if point["delta_wer"] is None else f", Δ WER {point['delta_wer']:+.2f}"
    return {
        **point,
        "shares": shares,
        "share": shares["total"],
        "bytes": sum(point["size_bytes"].values()),
        "taken": shares == taken,
        "title": f"{shares['total']:.1%} int8, {point['kl']:.4f} nats{delta}",
    }
