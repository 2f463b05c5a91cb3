"""MediaTek NPUs (MT8371, Genio 520): mtk_converter to .tflite, ncc-tflite to .dla, the Neuron runtime on the board.

Importing it needs none of them; `compile` calls the converter in an environment of its own (nightjar/toolchains/).
"""

from pathlib import Path

from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from targets.mtk.options import NAME as NAME
from targets.mtk.options import Options

TIERS = {"simulator": "vendor-simulator", "local": "device"}
DEFAULT_BOARD = "simulator"
RUNTIMES = ("neuron",)


def recipe(model: str) -> Recipe:
    """Return what this target wants of an export.

    Nothing that MDLA 5.3 has no operator for: token and position tables are looked up on the CPU (GATHER), masks are
    added and finite, no tensor has more than four dimensions or 64-bit integers. `static` is for whom the caches of
    `cached` do not suit; the window is clamped to the model's context. Raises BadOptions for a family that is not
    Whisper: the converter takes TorchScript, which no other is traced to.
    """
    if model != "whisper":
        raise BadOptions(
            f"target mtk has a recipe for whisper and none for {model}, whose graphs are not traced to TorchScript: "
            "pass --target onnx or rknn"
        )
    return Recipe(
        window_s=30, graph_format="onnx", decoder="cached", decoder_length=448, positional="first", host_embedding=True
    )


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: per part NAME.tflite and NAME.dla, and what ncc-tflite says of it.

    plan: as of a precision search; what it keeps has 16-bit activations, and its whole parts are float16. Raises
    BadOptions for int8 without calibration and for graphs that cannot be traced; ToolchainMissing, ToolchainBroken and
    ToolchainFailed; Broken for what is not what it is called.
    """
    from targets.mtk.build import build  # onnx, only where it is needed

    build(graphs, calibration, options, out, plan)
