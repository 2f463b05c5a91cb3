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
COLOURS = ("var(--ink)", "#4a74b5", "#c0362c", "#1a7f4b", "#a86a00", "#7a4fb0", "#2a9aa8", "#8a6d3b")


def stream_section(stream: Mapping[str, Any]) -> Markup:
    """Return the report's section; `stream` as in results.json."""
    by_chunk = {subject: {each["name"]: each for each in rows} for subject, rows in stream["by_chunk"].items() if rows}
    strata = []
    for name in STRATA:
        row = {subject: rows[name] for subject, rows in by_chunk.items() if name in rows}
        if row:
            counts = next(reversed(row.values()))["counts"]
            strata.append((name, {**row, "words": sum(counts[k] for k in ("hits", "substitutions", "deletions"))}))
    drift = Drift.model_validate(stream["drift"]) if stream["drift"] else None
    return render(
        "stream.html",
        subjects=list(by_chunk),
        strata=strata,
        times=stream["chunk_times"],
        drift=drift,
        top_db=TOP_DB,
        **(_drift_plot(drift) if drift is not None else {}),
    )


def _drift_plot(drift: Drift) -> dict[str, Any]:
    """Draw the searched output and, of each kind of state, the worst one."""
    x, y = Axis(0, drift.seconds, 48.0, 624.0), Axis(0, TOP_DB, 236.0, 16.0)
    chunk_s = drift.seconds / drift.count
    states = {name: curve for name, curve in drift.courses.items() if name != drift.output}
    drawn = [("", drift.output, drift.courses[drift.output])]
    drawn += [(kind, name, curve) for kind, (name, curve) in worst_by_kind(states).items()]
    curves = [
        {
            "kind": kind,
            "name": name,
            "curve": curve,
            "colour": COLOURS[number % len(COLOURS)],
            "points": polyline(
                (x.at(chunk * chunk_s), y.at(max(0.0, min(snr, TOP_DB))))
                for chunk, snr in zip(drift.chunks, curve.snr_db, strict=True)
            ),
        }
        for number, (kind, name, curve) in enumerate(drawn)
    ]
    step = 10 ** math.floor(math.log10(max(drift.seconds, 1.0)))
    seconds = [number * step for number in range(11) if number * step <= drift.seconds]
    plot = Plot(
        x, y, [(x.at(s), f"{s:g}") for s in seconds], [(y.at(db), f"{db} dB") for db in range(0, TOP_DB + 1, 20)]
    )
    return {"curves": curves, "states": list(states.items()), "plot": plot}
