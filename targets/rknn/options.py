"""Name and options of the target."""

from typing import Literal

from pydantic import BaseModel, Field

from nightjar.plugins.target_build import FloatNodes

NAME = "rknn"


class Options(BaseModel, frozen=True):
    """How graphs become .rknn files; the defaults are measured in README.md."""

    precision: Literal["fp", "int8", "auto"] = Field(
        "fp", description="float16; int8 weights and activations; or auto: a precision search's plan decides per layer"
    )
    soc: Literal["rk3588", "rk3576", "rk3562", "rk3566", "rk3568", "rv1126b"] = Field(
        "rk3588", description="the SoC to compile for"
    )
    quantized_algorithm: Literal["clips", "normal", "kl_divergence", "mmse"] = Field(
        "clips",
        description="int8: source of ranges: clips: Nightjar, from many samples; the others: the toolkit, from few",
    )
    quantized_method: Literal["channel", "layer"] = Field("channel", description="weight scale per channel or layer")
    optimization_level: int = Field(3, ge=0, le=3, description="level of the toolkit's optimiser")
    samples: int = Field(100, ge=1, description="int8: samples per part, spread evenly; the toolkit takes 15 s each")
    memory_gib: float = Field(
        8, gt=0, description="int8 by the toolkit: memory for the activations of all samples; more samples are dropped"
    )
    float_rules: bool = Field(
        True, description="int8: keep attention with a mask in float16, and inputs, outputs and a stream's counters"
    )
    float_nodes: FloatNodes = Field(
        (),
        description="int8: more nodes to keep in float16, `part:glob` of the ONNX graph, such as decoder:/blocks.3/*",
    )
