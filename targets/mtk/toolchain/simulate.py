"""Run .tflite parts with mtk_converter's executor: tier vendor-simulator. Stock TFLite has no MTKEXT operator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, errors_as, require_file


class ExecutorRunner(PartRunner):
    """Hold one executor per part."""

    runtime = "TFLiteExecutor"

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[Any] | None:
        with errors_as(f"TFLiteExecutor cannot run {part}"):
            results: list[Any] | None = self.handles[part].run([np.ascontiguousarray(array) for array in arrays])
        return results


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> ExecutorRunner:
    """Open `parts` (name to {"tflite": {"file"}, "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    import mtk_converter  # type: ignore[import-not-found]  # in the vendor's environment only

    executors = {}
    for name, part in parts.items():
        file = require_file(folder, part["tflite"]["file"], name)
        with errors_as(f"TFLiteExecutor cannot load {file}"):
            executors[name] = mtk_converter.TFLiteExecutor(str(file))
    return ExecutorRunner(executors, parts)
