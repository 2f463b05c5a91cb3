"""The reference target: onnxruntime on this machine, float or int8.

Importing it needs neither onnx nor onnxruntime; `compile` does.
"""

import json
from pathlib import Path
from typing import Any

from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.target_build import check_request, write_binary
from targets.onnx.options import NAME, Options

TIERS = {"local": "host"}
DEFAULT_BOARD = "local"
RUNTIMES = ("onnxruntime",)


def recipe(model: str) -> Recipe:
    """Return the recipe of an export: the most exact and fastest, as onnxruntime runs every graph."""
    return Recipe(
        window_s=30, graph_format="onnx", decoder="cached", decoder_length=448, positional="first", host_embedding=False
    )


def compile(graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Write the binary of docs/files.md: the graphs with attention fused, or each quantized with its calibration part.

    A `cached` decoder gets as many lanes as memory allows (batched_decoder.py).
    Equal inputs give equal bytes. Raises BadOptions for int8 without calibration, for graphs that are not
    ONNX and for a `float_nodes` pattern that fits no layer; Broken for a graph that does not load and for an int8 part
    without int8 layers.
    """
    # imports onnx and onnxruntime
    from targets.onnx.build import fuse_part, open_lanes, quantize_parts

    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    if model["recipe"]["graph_format"] != "onnx":
        raise BadOptions(
            "target onnx runs ONNX graphs, these are TorchScript: pass --target torchscript, "
            "or export with graph_format onnx"
        )
    check_request(options.precision, calibration, None)
    files = {name: part["file"] for name, part in model["parts"].items()}
    out.mkdir(parents=True, exist_ok=True)
    audits: dict[str, dict[str, Any]]
    if options.precision == "fp":
        audits = {name: fuse_part(graphs / file, out / file) for name, file in files.items()}
    else:
        assert calibration is not None
        audits = quantize_parts(graphs, files, calibration, options, out)
    if model["recipe"]["decoder"] == "cached":
        audits["decoder"] |= open_lanes(out / files["decoder"], model["parts"]["decoder"])
    parts = {name: {"runner": NAME, "file": files[name], **audits[name]} for name in files}
    write_binary(graphs, model, parts, out, target=NAME, precision=options.precision)
