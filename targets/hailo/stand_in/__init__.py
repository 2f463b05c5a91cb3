"""What stands in for the DFC: the same graphs on onnxruntime, rounded as Hailo's schemes round. No figure of an NPU.

Layers are a8_w8, or a16_w16 (a16_w8) where a plan says so; ranges, accumulators and the DFC's own corrections are not
its. It shows that the graph works, and which layers want 16 bits. It writes no .har and no .hef.
"""

import json
from pathlib import Path

from nightjar.plugins.recipe import Recipe
from targets import hailo
from targets.hailo.stand_in.options import NAME as NAME
from targets.hailo.stand_in.options import Options

TIERS = {"stand-in": "stand-in"}
DEFAULT_BOARD = "stand-in"
RUNTIMES = ("onnxruntime",)
RUNNERS = ("onnx",)  # of what would not be on the NPU


def recipe(model: str) -> Recipe:
    """Return what the DFC wants of an export."""
    return hailo.recipe(model)


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: rounded ONNX of what would be on the NPU, float ONNX of the rest.

    plan: as for the DFC; quantized: a folder of `quantization`, instead of collecting ranges again. The same inputs
    give the same bytes. Raises BadOptions for int8 without calibration, and for what the DFC would not take.
    """
    from targets.hailo.stand_in.build import build  # onnx, only where it is needed

    build(graphs, calibration, options, out, plan, quantized)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Collect the activation ranges that every plan's build starts from: `ranges.json`."""
    from targets.hailo.stand_in.build import collect

    ranges = collect(graphs, calibration, options)
    (out / "ranges.json").write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")
