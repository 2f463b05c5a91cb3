"""Run .tflite parts with mtk_converter's executor: tier vendor-simulator. Stock TFLite has no MTKEXT operator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.device.part_io import Parts, Tensors, first_line, named_outputs, ordered_inputs, require_file


class ExecutorRunner:
    """Hold one executor per part."""

    def __init__(self, executors: Mapping[str, Any], parts: Parts) -> None:
        self.executors = dict(executors)
        self.inputs = {name: parts[name]["inputs"] for name in executors}
        self.outputs = {name: parts[name]["outputs"] for name in executors}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        arrays = [np.ascontiguousarray(a) for a in ordered_inputs(part, self.inputs, {**inputs, **constant})]
        try:
            results = self.executors[part].run(arrays)
        except Exception as exc:  # any class of the SDK
            raise RuntimeError(f"TFLiteExecutor cannot run {part}: {first_line(exc)}") from exc
        return named_outputs(part, self.outputs[part], results, "TFLiteExecutor")

    def close(self) -> None:
        """Drop the executors and their memory."""
        self.executors.clear()
        self.inputs.clear()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> ExecutorRunner:
    """Open `parts` (name to {"tflite": {"file"}, "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    import mtk_converter  # type: ignore[import-not-found]  # in the vendor's environment only

    executors = {}
    for name, part in parts.items():
        file = require_file(folder, part["tflite"]["file"], name)
        try:
            executors[name] = mtk_converter.TFLiteExecutor(str(file))
        except Exception as exc:  # any class of the SDK
            raise RuntimeError(f"TFLiteExecutor cannot load {file}: {first_line(exc)}") from exc
    return ExecutorRunner(executors, parts)
