"""Compile graphs for an NPU, and collect the quantization parameters that its builds share."""

import inspect
from pathlib import Path

from pydantic import BaseModel

from nightjar.plugins.registry import Plugin
from tasks.concurrency import hold_toolchain
from tasks.stage import stage


@stage
def build(
    *,
    graphs: Path,
    calibration: Path | None,
    target: Plugin,
    options: BaseModel,
    out: Path,
    work: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> dict[str, str]:
    """Compile every part for the target, quantized with the calibration if the options say so.

    plan: a precision plan; quantized: parameters that the target's `quantization` computed from the calibration; work:
    for a target whose compile resumes an earlier attempt.
    """
    compile = target.load().compile
    optional = {"plan": plan and plan / "plan.json", "quantized": quantized}
    optional = {name: path for name, path in optional.items() if path is not None}
    if "work" in inspect.signature(compile).parameters:
        optional["work"] = work
    with hold_toolchain(target):
        compile(graphs, calibration, options, out, **optional)
    return {"target": target.name}


@stage
def quantize(*, graphs: Path, calibration: Path, target: Plugin, options: BaseModel, out: Path) -> None:
    """Write the quantization parameters that the target collects from the graphs and their calibration set."""
    with hold_toolchain(target):
        target.load().quantization(graphs, calibration, options, out)
