"""Rockchip NPUs: rknn-toolkit2 compiles, quantizes and simulates; rknn-toolkit-lite2 runs on the board.

Importing it needs neither; `compile` calls the toolkit in an environment of its own (nightjar/toolchain.py).
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from nightjar.recipe import Recipe

NAME = "rknn"
TIERS = {"simulator": "vendor-simulator", "local": "device"}
DEFAULT_BOARD = "simulator"
RUNTIMES = ("rknn-toolkit-lite2",)


class Options(BaseModel, frozen=True):
    """How graphs become .rknn files; the defaults are measured in README.md."""

    precision: Literal["fp", "int8", "auto"] = Field(
        "fp", description="float16; int8 weights and activations; or auto, as a precision search's plan says"
    )
    soc: Literal["rk3588", "rk3576", "rk3562", "rk3566", "rk3568", "rv1126b"] = Field(
        "rk3588", description="the SoC to compile for"
    )
    quantized_algorithm: Literal["clips", "normal", "kl_divergence", "mmse"] = Field(
        "clips",
        description="int8: how ranges are chosen: clips, by us over many samples; the others by the toolkit over few",
    )
    quantized_method: Literal["channel", "layer"] = Field(
        "channel", description="int8: weight scales per channel or one"
    )
    optimization_level: int = Field(3, ge=0, le=3, description="the toolkit's own optimiser")
    samples: int = Field(
        100, ge=1, description="int8: calibration samples per part, spread evenly; the toolkit takes 15 s for each"
    )
    memory_gib: float = Field(
        8, gt=0, description="int8 by the toolkit: what activations over all samples may take; more are left out"
    )
    float_rules: bool = Field(
        True,
        description="int8: keep attention with a mask float16, and a stream's inputs, outputs and states "
        "(targets/rknn/README.md)",
    )
    float_nodes: tuple[str, ...] = Field(
        (),
        description="int8: more nodes to keep float16, `part:glob` over the ONNX graph's, such as decoder:/blocks.3/*",
    )

    @field_validator("float_nodes")
    @classmethod
    def _has_a_part(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if not all(entry.partition(":")[::2]):
                raise ValueError(f"{entry!r} is not PART:GLOB")
        return entries


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
