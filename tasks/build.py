"""Compile graphs for an NPU."""

from pathlib import Path

from pydantic import BaseModel

from nightjar.plugins import Plugin
from tasks.stage import stage


@stage
def build(*, graphs: Path, calibration: Path | None, target: Plugin, options: BaseModel, out: Path) -> dict[str, str]:
    """Compile every part for the target, quantized by the calibration where the options say so."""
    target.load().compile(graphs, calibration, options, out)
    return {"target": target.module.rpartition(".")[2]}
