"""Compile graphs for an NPU."""

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
    """Compile every part for the target, quantized by the calibration where the options say so.

    plan: of a precision search; quantized: parameters that the target's `quantization` collected from the calibration.
    work: for a target whose compile goes on from there where an earlier try failed.
    """
    compile = target.load().compile
    given = {"plan": plan and plan / "plan.json", "quantized": quantized}
    given = {name: path for name, path in given.items() if path is not None}
    if "work" in inspect.signature(compile).parameters:
        given["work"] = work
    with hold_toolchain(target):
        compile(graphs, calibration, options, out, **given)
    return {"target": target.name}
