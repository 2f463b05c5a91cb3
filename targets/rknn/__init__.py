"""Rockchip NPUs: rknn-toolkit2 compiles, quantizes and simulates; rknn-toolkit-lite2 runs on the board.

Importing it needs neither; `compile` calls the toolkit in an environment of its own (nightjar/toolchains/).
"""

from pathlib import Path

from nightjar.plugins.recipe import Recipe
from nightjar.quantization.npu_traits import NpuTraits
from targets.rknn.options import NAME as NAME
from targets.rknn.options import Options

TIERS = {"simulator": "vendor-simulator", "local": "device"}
DEFAULT_BOARD = "simulator"
RUNTIMES = ("rknn-toolkit-lite2",)
TRAITS = NpuTraits(
    integer_outputs=True,  # rknn-toolkit2 2.5: the inputs and outputs of a quantized model are int8
    # rknn-toolkit2 2.5 fuses the residual's add behind a linear without bias, as if it were the bias.
    branch_bias_share=0.5,
    measured_loss_share=0.3,  # the simulator measured 0.28 to 0.32 of it over all rungs of tiny.en
)


def recipe(model: str) -> Recipe:
    """Return what this target wants of an export.

    `cached` costs one token a step instead of a whole prefix; the token table stays on the host, because the NPU hands
    look-ups to the CPU and stores the table a second time. The toolkit cuts kernels of more than 16 taps itself, and
    then what the parts put out is no tensor of the graph, so that nothing would tell its range.
    """
    return Recipe(
        window_s=30,
        graph_format="onnx",
        decoder="cached",
        decoder_length=448,
        positional="first",
        host_embedding=True,
        kernel_most=16,
    )


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: per part NAME.rknn, its layers and what the simulator starts from.

    plan: `{"float": {part: [tensors of the ONNX graph]}}`, which `auto` takes in place of the float rules; quantized: a
    folder of `targets.rknn.build.quantization`, instead of collecting parameters again. The same inputs give the same
    bytes. Raises BadOptions for int8 without calibration, graphs that are not ONNX and names that fit no layer;
    ToolchainMissing, ToolchainBroken and ToolchainFailed; Broken for an int8 part that multiplies nothing in int8.
    """
    from targets.rknn.build import build  # onnx, only where it is needed

    build(graphs, calibration, options, out, plan, quantized)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Collect the quantization parameters that `compile` takes as `quantized`: the expensive step, once for all plans.

    They depend on the graphs, the calibration set and the options for ranges; what is kept float16 does not enter.
    """
    from targets.rknn.build import quantization as collect

    collect(graphs, calibration, options, out)
