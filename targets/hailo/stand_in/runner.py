"""Run the stand-in's parts with onnxruntime, with the rounding in float and none of it fused away."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nightjar.device.part_io import Parts
from targets.onnx.runner import OnnxRunner
from targets.onnx.runner import open_runner as open_onnx_runner

SETTINGS = {"session.disable_quant_qdq": "1"}


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> OnnxRunner:
    """Open `parts` (name to {"file", ...}, as in binary.json) that lie in `folder`.

    options: `threads`, as for onnxruntime. Raises RuntimeError with one line.
    """
    return open_onnx_runner(folder, parts, {**(options or {}), "settings": SETTINGS, "own_process": False})
