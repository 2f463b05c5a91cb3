"""Example target: onnxruntime on this machine acts as an NPU with float16 weights."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from nightjar.plugins.recipe import Recipe
from nightjar.plugins.target_build import read_model, write_binary

NAME = "halves"
TIERS = {"local": "host"}
DEFAULT_BOARD = "local"
RUNTIMES = ("onnxruntime",)


class Options(BaseModel, frozen=True):
    """Options of a build for this NPU."""

    precision: Literal["fp"] = Field("fp", description="float16 weights, float32 activations")


def recipe(model: str) -> Recipe:
    """Return the recipe of an export: token look-ups stay on the CPU, as most NPUs need it."""
    return Recipe(host_embedding=True)


def compile(graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Write each part with weights rounded to float16, and binary.json (docs/files.md, binary)."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = read_model(graphs, NAME)
    out.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, part in model["parts"].items():
        graph = onnx.load(graphs / part["file"])
        for tensor in graph.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                halved = values.astype(np.float16).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
        onnx.save(graph, out / part["file"])
        parts[name] = {"file": part["file"], "int8_mac_share": 0.0}
    write_binary(graphs, model, parts, out, target=NAME, precision=options.precision)
