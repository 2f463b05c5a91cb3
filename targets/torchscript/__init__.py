"""The other float reference: TorchScript graphs run by torch on this machine."""

import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from nightjar.plugins.recipe import Recipe
from nightjar.plugins.target_build import read_model, write_binary

NAME = "torchscript"
TIERS = {"local": "host"}
DEFAULT_BOARD = "local"
RUNTIMES = ("torch",)


class Options(BaseModel, frozen=True):
    """TorchScript graphs run as they are."""

    precision: Literal["fp"] = Field("fp", description="float32; there is no quantized TorchScript here")


def recipe(model: str) -> Recipe:
    """Return the recipe of an export: the onnx target's in the other format."""
    return Recipe(graph_format="torchscript")


def compile(graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Copy the graphs and describe them; raises BadOptions when they are not TorchScript."""
    model = read_model(graphs, NAME, "pass --target onnx, or ", "torchscript")
    out.mkdir(parents=True, exist_ok=True)
    for part in model["parts"].values():
        shutil.copyfile(graphs / part["file"], out / part["file"])
    entries = {name: {"int8_mac_share": 0.0, **part} for name, part in model["parts"].items()}
    write_binary(graphs, model, entries, out, target=NAME, precision=options.precision)
