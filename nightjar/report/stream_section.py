"""The report's section on a stream: errors by chunk, the time that chunks take, and drift as a plot."""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from nightjar.report.axes import Axis, Plot, polyline
from nightjar.report.rendering import render
from nightjar.scoring.drift import Drift, worst_by_kind
from nightjar.scoring.streaming import STRATA

TOP_DB = 60  # higher SNRs are drawn here: float16 alone reaches them


def stream_section(stream: Mapping[str, Any]) -> Markup:
    """Return the report's section; `stream` as in results.json."""
    by_chunk = {subject: {each["name"]: each for each in rows} for subject, rows in stream["by_chunk"].items() if rows}
    strata = {name: {who: rows[name] for who, rows in by_chunk.items() if name in rows} for name in STRATA}
    drift = Drift.model_validate(stream["drift"]) if stream["drift"] else None
    return render(
        "stream.html",
        subjects=list(by_chunk),
        strata=[(name, row) for name, row in strata.items() if row],
        times=stream["chunk_times"],
        drift=drift,
        top_db=TOP_DB,
        **(_drift_plot(drift) if drift is not None else {}),
    )


def _drift_plot(drift: Drift) -> dict[str, Any]:
    """Draw the searched output and, of each kind of state, the worst one."""
    x, y = Axis(0, drift.seconds, 48.0, 624.0), Axis(0, TOP_DB, 236.0, 16.0)
    states = {name: curve for name, curve in drift.courses.items() if name != drift.output}
    xs = [x.at(chunk * drift.seconds / drift.count) for chunk in drift.chunks]
    curves = []
    for kind, (name, curve) in {"": (drift.output, drift.courses[drift.output]), **worst_by_kind(states)}.items():
        ys = [y.at(max(0.0, min(snr, TOP_DB))) for snr in curve.snr_db]
        curves.append({"kind": kind, "name": name, "curve": curve, "points": polyline(zip(xs, ys, strict=True))})
    step = 10 ** math.floor(math.log10(max(drift.seconds, 1.0)))
    seconds = [number * step for number in range(11) if number * step <= drift.seconds]
    decibels = [(y.at(db), f"{db} dB") for db in range(0, TOP_DB + 1, 20)]
    return {"curves": curves, "states": states, "plot": Plot(x, y, [(x.at(s), f"{s:g}") for s in seconds], decibels)}
