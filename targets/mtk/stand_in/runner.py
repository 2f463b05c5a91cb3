"""Run .tflite parts with LiteRT on a CPU: numpy and ai_edge_litert only. It measures no NPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]  # in the stand-in's environment
from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, errors_as, require_file


class LiteRtRunner(PartRunner):
    """Hold one interpreter per part."""

    runtime = "LiteRT"

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[Any]:
        interpreter = self.handles[part]
        for detail, array in zip(in_graph_order(interpreter.get_input_details()), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"], copy=False))  # int64 became int32
        with errors_as(f"LiteRT cannot run {part}"):
            interpreter.invoke()
        details = in_graph_order(interpreter.get_output_details())
        return [_dequantize(interpreter.get_tensor(detail["index"]), detail) for detail in details]


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> LiteRtRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    options: `threads` (one by default). Raises RuntimeError with one line.
    """
    interpreters = {}
    for name, part in parts.items():
        file = require_file(folder, part["file"], name)
        with errors_as(f"LiteRT cannot load {file}"):
            interpreters[name] = Interpreter(model_path=str(file), num_threads=int((options or {}).get("threads", 1)))
            interpreters[name].allocate_tensors()
    return LiteRtRunner(interpreters, parts)


def _dequantize(values: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return an output in float: ai-edge-quantizer leaves one in integers that the graph itself also reads."""
    scale, zero = detail["quantization"]
    if not scale or values.dtype.kind == "f":
        return values
    return np.asarray((values.astype(np.float32) - zero) * scale, np.float32)


def in_graph_order(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort tensors by the numbers in their names: litert-torch writes `…_args_10`, `…_output_2_output`."""
    return sorted(details, key=lambda detail: [int(word) for word in detail["name"].split("_") if word.isdigit()])
