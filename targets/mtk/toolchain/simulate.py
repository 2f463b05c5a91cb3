"""Run .tflite parts with mtk_converter's own executor: tier vendor-simulator; stock TFLite knows no MTKEXT operator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


class ExecutorRunner:
    """Hold one executor per part."""

    def __init__(self, executors: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.executors = dict(executors)
        self.inputs = {name: parts[name]["inputs"] for name in executors}
        self.outputs = {name: parts[name]["outputs"] for name in executors}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.executors:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.executors))}")
        given, wanted = {**inputs, **constant}, self.inputs[part]
        if given.keys() != {entry["name"] for entry in wanted}:
            raise RuntimeError(f"{part} takes {', '.join(e['name'] for e in wanted)}, not {', '.join(given)}")
        arrays = [np.ascontiguousarray(given[entry["name"]]) for entry in wanted]
        for entry, array in zip(wanted, arrays):  # noqa: B905 (of one length; the SDK has older Pythons)
            if list(array.shape) != list(entry["shape"]):
                raise RuntimeError(f"{part} takes {entry['name']} as {tuple(entry['shape'])}, not {array.shape}")
        try:
            results = self.executors[part].run(arrays)
        except Exception as exc:  # whatever the SDK raises
            raise RuntimeError(f"TFLiteExecutor cannot run {part}: {_first_line(exc)}") from exc
        if results is None or len(results) != len(self.outputs[part]):
            raise RuntimeError(f"TFLiteExecutor gave no result for {part}")
        return {
            entry["name"]: np.asarray(result).reshape(entry["shape"])
            for entry, result in zip(self.outputs[part], results)  # noqa: B905
        }

    def close(self) -> None:
        """Drop the executors and their memory."""
        self.executors.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> ExecutorRunner:
    """Open `parts` (name to {"tflite": {"file"}, "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    import mtk_converter  # type: ignore[import-not-found]  # in the vendor's environment only

    executors = {}
    for name, part in parts.items():
        file = Path(folder) / part["tflite"]["file"]
        if not file.is_file():
            raise RuntimeError(f"no file {file} for part {name!r}")
        try:
            executors[name] = mtk_converter.TFLiteExecutor(str(file))
        except Exception as exc:  # whatever the SDK raises
            raise RuntimeError(f"TFLiteExecutor cannot load {file}: {_first_line(exc)}") from exc
    return ExecutorRunner(executors, parts)


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
