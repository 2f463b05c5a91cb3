"""What the target is called, and what a build of it takes."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

NAME = "rknn"


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
