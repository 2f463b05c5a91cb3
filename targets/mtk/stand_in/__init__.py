"""Stand-in for MediaTek's SDK: litert-torch converts, ai-edge-quantizer quantizes, LiteRT runs on this machine's CPU.

It shares the recipe, the traced modules and the lint with the real target, but not its numerics or its speed.
"""

from pathlib import Path

from targets.mtk import PART_LIMIT as PART_LIMIT
from targets.mtk import recipe as recipe
from targets.mtk.stand_in.options import NAME as NAME
from targets.mtk.stand_in.options import Options

TIERS = {"stand-in": "stand-in"}
DEFAULT_BOARD = "stand-in"
RUNTIMES = ()


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: per part NAME.tflite.

    plan: its float groups get 16-bit activations, its whole parts stay float. quantized: a folder of `quantization`.
    Raises BadOptions, ToolchainMissing, ToolchainBroken, ToolchainFailed; Broken for an int8 part without int8 product.
    """
    from targets.mtk.stand_in.build import build  # imports onnx

    build(graphs, calibration, options, out, plan, quantized)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Convert every part in float and collect the ranges of its tensors: once for all plans."""
    from targets.mtk.stand_in.build import prepare

    prepare(graphs, calibration, options, out)
