"""Compile graphs for an NPU."""

from pathlib import Path

from pydantic import BaseModel

from nightjar.plugins import Plugin
from tasks.slot import compiling
from tasks.stage import stage


@stage
def build(
    *,
    graphs: Path,
    calibration: Path | None,
    target: Plugin,
    options: BaseModel,
    out: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> dict[str, str]:
    """Compile every part for the target, quantized by the calibration where the options say so.

    plan: of a precision search; quantized: parameters that the target's `quantization` collected from the calibration.
    """
    given = {"plan": plan and plan / "plan.json", "quantized": quantized}
    given = {name: path for name, path in given.items() if path is not None}
    with compiling(target):
        target.load().compile(graphs, calibration, options, out, **given)
    return {"target": target.name}
