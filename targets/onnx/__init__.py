"""The reference target: onnxruntime on this machine, float or int8.

Importing it loads neither onnx nor onnxruntime.
"""

from pathlib import Path

from nightjar.plugins.recipe import Recipe
from targets.onnx.options import NAME as NAME
from targets.onnx.options import Options

TIERS = {"local": "host"}
DEFAULT_BOARD = "local"
RUNTIMES = ("onnxruntime",)


def recipe(model: str) -> Recipe:
    """Return the recipe of an export: the most exact and fastest, as onnxruntime runs every graph."""
    return Recipe()


def compile(graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Write the binary of docs/files.md: the graphs with attention fused, or each quantized with its calibration part.

    A `cached` decoder gets as many lanes as memory allows (batched_decoder.py). Equal inputs give equal bytes. Raises
    BadOptions for int8 without calibration, for graphs that are not ONNX and for a `float_nodes` pattern that fits no
    layer; Broken for a graph that does not load and for an int8 part without int8 layers.
    """
    from targets.onnx.build import build  # imports onnx and onnxruntime

    build(graphs, calibration, options, out)
