"""Hailo-8L: the Dataflow Compiler (DFC) translates, optimizes, emulates and compiles; HailoRT runs on the board.

Importing it needs neither; `compile` calls the DFC in an environment of its own (nightjar/toolchains/). The encoder
runs on the NPU and the decoder on the board's CPU, by onnxruntime, unless `npu` says otherwise.
"""

from pathlib import Path

from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from targets.hailo.options import NAME as NAME
from targets.hailo.options import Options

TIERS = {"simulator": "vendor-simulator", "local": "device"}
DEFAULT_BOARD = "simulator"
RUNTIMES = ("hailort", "onnxruntime")
RUNNERS = ("onnx",)  # of what is not on the NPU
INTEGERS_ONLY = ("device",)  # an NPU of integers: float runs in the DFC's emulator alone


def recipe(model: str) -> Recipe:
    """Return what this target wants of an export.

    `cached` for the CPU. With `static` the decoder can go on the NPU: it takes embeddings, and puts out the logits of
    all rows in slices, as hailocs/hailo-whisper has it. Its decoders have 32 rows (tiny) or 24 (base). Raises
    BadOptions for a family that is not Whisper: what is known of the DFC is known of it.
    """
    if model != "whisper":
        raise BadOptions(
            f"target hailo has a recipe for whisper and none for {model}, whose graphs the DFC's parser does not take: "
            "pass --target onnx or rknn"
        )
    return Recipe(
        window_s=30,
        graph_format="onnx",
        decoder="cached",
        decoder_length=448,
        positional="first",
        host_embedding=True,
        conv2d=True,
        layer_norm="primitives",
        logits_rows="all",
        logits_slices=4,
        mask_value=-100.0,
    )


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    work: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: .har and .hef of what is on the NPU, ONNX of what is on the CPU.

    plan: `{"float": {part: [tensors of the ONNX graph]}}`, which `auto` takes in place of `residuals_16bit`: those are
    a16_w16. work: a folder that keeps the .har of each step, so that a compile that failed goes on from the optimized
    one. Raises BadOptions for int8 without calibration, graphs or parts that this NPU cannot take and what the DFC
    refuses for good; ToolchainMissing, ToolchainBroken and ToolchainFailed.
    """
    from targets.hailo.build import build  # onnx, only where it is needed

    build(graphs, calibration, options, out, plan, work)
