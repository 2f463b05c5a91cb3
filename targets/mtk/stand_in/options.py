"""Name and options of the stand-in."""

from typing import Literal

from pydantic import BaseModel, Field

NAME = "mtk.stand_in"


class Options(BaseModel, frozen=True):
    """How graphs become .tflite files."""

    precision: Literal["fp", "int8", "w8a16", "auto"] = Field(
        "fp", description="float32; int8; int8 weights with int16 activations; or auto: a search's plan decides"
    )
    samples: int = Field(48, ge=1, description="calibration samples per part, spread evenly")
    float_nodes: tuple[str, ...] = Field(
        (), description="nodes to keep float, `part:glob` of the ONNX graph, such as decoder:/blocks.3/*"
    )
