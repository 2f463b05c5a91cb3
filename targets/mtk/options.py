"""Name and options of the target."""

from typing import Literal

from pydantic import BaseModel, Field

NAME = "mtk"


class Options(BaseModel, frozen=True):
    """How graphs become .tflite and .dla files."""

    precision: Literal["fp", "int8", "w8a16", "auto"] = Field(
        "fp", description="float16 on the NPU; int8; int8 weights with int16 activations; or auto: a plan decides"
    )
    soc: Literal["mt8371"] = Field("mt8371", description="the SoC to compile for")
    samples: int = Field(64, ge=1, description="calibration samples per part, spread evenly")
    bridge: Literal["auto", "allow", "disallow"] = Field(
        "auto",
        description="how outputs leave the NPU: disallow for an SoC without EDPA; auto reads the execution plan",
    )
    float_nodes: tuple[str, ...] = Field(
        (), description="int8, auto: nodes with 16-bit activations, `part:glob` of the ONNX graph"
    )
