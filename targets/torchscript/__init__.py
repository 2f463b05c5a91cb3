"""The other float reference: TorchScript graphs run by torch on this machine."""

import json
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.target_build import write_binary

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
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    if model["recipe"]["graph_format"] != "torchscript":
        raise BadOptions(
            "target torchscript runs TorchScript graphs, these are ONNX: pass --target onnx, "
            "or export with graph_format torchscript"
        )
    out.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, part in model["parts"].items():
        shutil.copyfile(graphs / part["file"], out / part["file"])
        size_bytes = (out / part["file"]).stat().st_size
        parts[name] = {"runner": NAME, "file": part["file"], "size_bytes": size_bytes, "int8_mac_share": 0.0}
    write_binary(graphs, model, parts, out, target=NAME, precision=options.precision)
