"""The target's name and the options of a build."""

from typing import Literal

from pydantic import BaseModel, Field

NAME = "onnx"


class Options(BaseModel, frozen=True):
    """Options of a build; README.md has measurements of the defaults."""

    precision: Literal["fp", "int8"] = Field("fp", description="float32, or int8 weights and activations")
    per_channel: bool = Field(True, description="int8: a scale per output channel of the weights instead of one")
    method: Literal["minmax", "percentile"] = Field("minmax", description="int8: where activation ranges end")
    percentile: float = Field(99.99, gt=50, le=100, description="int8, percentile: part of the values inside the range")
    float_rules: bool = Field(True, description="int8: keep the layers of targets/onnx/quantize.py's rules float")
    float_nodes: tuple[str, ...] = Field(
        (), description="int8: more nodes to keep float, `part:glob`, such as encoder:/blocks.0/mlp/*"
    )
