"""Stand-in for the DFC: the same graphs on onnxruntime, rounded by Hailo's schemes. It measures no NPU.

It shows that the graph works and which layers need 16 bits. Ranges, accumulators and corrections are not the DFC's.
"""

import json
from pathlib import Path

from targets.hailo import recipe as recipe
from targets.hailo.stand_in.options import NAME as NAME
from targets.hailo.stand_in.options import Options

TIERS = {"stand-in": "stand-in"}
DEFAULT_BOARD = "stand-in"
RUNTIMES = ("onnxruntime",)
RUNNERS = ("onnx",)  # run the parts that would not be on the NPU


def compile(
    graphs: Path,
    calibration: Path | None,
    options: Options,
    out: Path,
    plan: Path | None = None,
    quantized: Path | None = None,
) -> None:
    """Write the binary of docs/files.md: rounded ONNX of parts for the NPU, float ONNX of the rest.

    plan: as for the DFC; quantized: a folder of `quantization`. The same inputs give the same bytes. Raises BadOptions.
    """
    from targets.hailo.stand_in.build import build  # imports onnx

    build(graphs, calibration, options, out, plan, quantized)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Collect the activation ranges for all plans: `ranges.json`."""
    from targets.hailo.stand_in.build import collect

    ranges = collect(graphs, calibration, options)
    (out / "ranges.json").write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")
