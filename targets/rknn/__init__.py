"""Rockchip NPUs: rknn-toolkit2 compiles, quantizes and simulates; rknn-toolkit-lite2 runs on the board.

Importing this needs neither: `compile` calls the toolkit in its own environment (nightjar/toolchains/).
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
    integer_outputs=False,  # the build makes a part's inputs and outputs float16 (layer_mapping.boundary_tensors)
    # rknn-toolkit2 2.5 fuses the residual's add behind a linear without bias, as if it were the bias.
    branch_bias_share=0.5,
    integer_attention=True,  # the toolkit's fused attention rounds the softmax to int8 as well
    # One row times float16 weights: 11 GB/s. A large float16 product: 450 G multiply-accumulates/s (RK3588, one core,
    # clehaxze.tw, benchmarking RK3588 NPU matrix multiplication, 2024-02).
    weight_macs=80,
    # The simulator measured 2.8 to 3.5 of it on tiny.en's rungs: a decoder reads keys that int8 has made, the ranking's
    # are float.
    measured_loss_share=3.0,
)


def recipe(model: str) -> Recipe:
    """Return the recipe of this target's export.

    The token table stays on the host: the NPU runs look-ups on the CPU and stores the table again. The toolkit splits
    kernels of more than 16 taps into layers whose outputs are not tensors of the graph and have no range, so the export
    splits them.
    """
    return Recipe(host_embedding=True, kernel_most=16)


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: per part NAME.rknn, its layers and what the simulator starts from.

    plan: `{"float": {part: [tensors of the ONNX graph]}}`, which `auto` uses instead of the float rules; quantized: a
    folder of `quantization`, instead of collecting parameters again. The same inputs give the same bytes. Raises
    BadOptions for int8 without calibration, graphs that are not ONNX and globs that match no layer; ToolchainMissing,
    ToolchainBroken and ToolchainFailed; Broken for an int8 part that multiplies nothing in int8.
    """
    from targets.rknn.build import build  # imports onnx

    build(graphs, calibration, options, out, plan, quantized)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Collect the quantization parameters that `compile` takes as `quantized`: the slow step, once for all plans."""
    from targets.rknn.build import quantization as collect

    collect(graphs, calibration, options, out)
