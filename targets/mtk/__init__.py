"""MediaTek NPUs (MT8371, Genio 520): mtk_converter to .tflite, ncc-tflite to .dla, the Neuron runtime on the board."""

from pathlib import Path

from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from targets.mtk.options import NAME, Options

TIERS = {"simulator": "vendor-simulator", "local": "device"}
DEFAULT_BOARD = "simulator"
RUNTIMES = ("neuron",)
PART_LIMIT = (2**31 - 1, "a .tflite in float32, from which int8 is made too, ends at 2,147 MB")


def recipe(model: str) -> Recipe:
    """Return the recipe of this target's export.

    It avoids operators that MDLA 5.3 lacks: token and position tables are looked up on the CPU (GATHER), masks are
    finite and added, no tensor has more than four dimensions or 64-bit integers. Raises BadOptions for a family that is
    not Whisper: the converter takes TorchScript, and no other family is traced.
    """
    if model != "whisper":
        raise BadOptions(
            f"target {NAME} has a recipe for whisper only; the graphs of {model} are not traced to TorchScript: "
            "pass --target onnx or rknn"
        )
    return Recipe(decoder="cached", host_embedding=True)


def compile(graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None = None) -> None:
    """Write the binary of docs/files.md: per part NAME.tflite, NAME.dla and the execution plan of ncc-tflite.

    plan: of a precision search; its float groups get 16-bit activations, its whole parts float16. Raises BadOptions for
    int8 without calibration and for graphs that cannot be traced; ToolchainMissing, ToolchainBroken and
    ToolchainFailed; Broken for a result of another precision than its name.
    """
    from targets.mtk.build import build  # imports onnx

    build(graphs, calibration, options, out, plan)
