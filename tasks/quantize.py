"""Collect a target's quantization parameters once, for builds of every precision plan."""

from pathlib import Path

from pydantic import BaseModel

from nightjar.plugins.registry import Plugin
from tasks.concurrency import hold_toolchain
from tasks.stage import stage


@stage
def quantize(*, graphs: Path, calibration: Path, target: Plugin, options: BaseModel, out: Path) -> None:
    """Write the quantization parameters that the target collects from the graphs and their calibration set."""
    with hold_toolchain(target):
        target.load().quantization(graphs, calibration, options, out)
