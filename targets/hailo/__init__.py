"""Hailo-8L: the Dataflow Compiler (DFC) translates, optimizes, emulates and compiles; HailoRT runs on the board."""

from pathlib import Path

from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from targets.hailo.options import NAME, Options

TIERS = {"simulator": "vendor-simulator", "local": "device"}
DEFAULT_BOARD = "simulator"
RUNTIMES = ("hailort", "onnxruntime")
RUNNERS = ("onnx",)  # run the parts that are not on the NPU
INTEGERS_ONLY = ("device",)  # the NPU has no float: that runs in the DFC's emulator only


def recipe(model: str) -> Recipe:
    """Return the recipe of this target's export.

    Its `cached` decoder is for the CPU. A `static` decoder can run on the NPU: it takes embeddings and returns the
    logits of all rows in slices, as in hailocs/hailo-whisper, whose decoders have 32 rows (tiny) or 24 (base). Raises
    BadOptions for a family that is not Whisper.
    """
    if model != "whisper":
        raise BadOptions(
            f"target {NAME} has a recipe for whisper only; the DFC's parser does not take the graphs of {model}: "
            "pass --target onnx or rknn"
        )
    return Recipe(
        host_embedding=True, conv2d=True, layer_norm="primitives", logits_rows="all", logits_slices=4, mask_value=-100.0
    )


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    work: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: .har and .hef of parts on the NPU, ONNX of parts on the CPU.

    plan: `{"float": {part: [tensors of the ONNX graph]}}`, the a16_w16 layers of `auto` instead of `residuals_16bit`.
    work: a folder that keeps the .har of each step; a failed compile resumes from there. Raises BadOptions for int8
    without calibration, for graphs that this NPU or the DFC does not take; ToolchainMissing, ToolchainBroken and
    ToolchainFailed.
    """
    from targets.hailo.build import build  # imports onnx

    build(graphs, calibration, options, out, plan, work)
