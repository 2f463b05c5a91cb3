"""Name and options of the stand-in."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from nightjar.errors import BadOptions
from targets.hailo.options import PlacementOptions

NAME = "hailo.stand_in"


class Options(PlacementOptions, frozen=True):
    """How graphs are rounded."""

    precision: Literal["fp", "int8", "auto"] = Field(
        "fp", description="float32; a8_w8; or auto: 16 bits where a search's plan says so"
    )
    wide: Literal["a16_w16", "a16_w8"] = Field(
        "a16_w16", description="activations and weights of layers that are not a8_w8; the DFC has a16_w16 only"
    )
    range_samples: int = Field(100, ge=1, description="calibration samples for activation ranges, at most")


def read_ranges(quantized: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Read the ranges that `quantization` wrote, by part and tensor; raises BadOptions for another folder."""
    try:
        content = json.loads((quantized / "ranges.json").read_text(encoding="utf-8"))
        return {part: {name: (low, high) for name, (low, high) in ends.items()} for part, ends in content.items()}
    except (OSError, ValueError, AttributeError) as exc:
        raise BadOptions(f"{quantized} holds no ranges ({exc}): run the same command with --refresh quantize") from exc
