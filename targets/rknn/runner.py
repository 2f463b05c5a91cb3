"""Run compiled parts on the NPU with rknn-toolkit-lite2: numpy and rknnlite only.

The contract, as rknn-toolkit-lite2 2.5.0 documents it in rknnlite/api/rknn_lite.py: `load_rknn` and `init_runtime` give
0 or -1 and raise nothing, `inference` a list of arrays or None; what went wrong is printed. `data_format` is `nchw`
because the runtime takes every 4-D input for NHWC otherwise. Only a model of the board's own SoC loads.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rknnlite.api import RKNNLite  # type: ignore[import-not-found]  # aarch64 boards only

Tensors = dict[str, NDArray[Any]]
Tensor = Mapping[str, Any]  # {"name", "shape", "dtype"}

# RKNNLite's names; one core of three by default. Two or three at once split a model's layers between them.
CORES = {"auto": "AUTO", "0": "0", "1": "1", "2": "2", "0_1": "0_1", "0_1_2": "0_1_2", "all": "ALL"}


class RknnRunner:
    """Hold one runtime context per part."""

    def __init__(self, contexts: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.contexts = dict(contexts)
        self.inputs: dict[str, list[Tensor]] = {name: parts[name]["inputs"] for name in contexts}
        self.outputs: dict[str, list[Tensor]] = {name: parts[name]["outputs"] for name in contexts}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.contexts:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.contexts))}")
        given, wanted = {**inputs, **constant}, self.inputs[part]
        if given.keys() != {entry["name"] for entry in wanted}:
            raise RuntimeError(f"{part} takes {', '.join(e['name'] for e in wanted)}, not {', '.join(given)}")
        for entry in wanted:
            if list(given[entry["name"]].shape) != list(entry["shape"]):
                shape = given[entry["name"]].shape
                raise RuntimeError(f"{part} takes {entry['name']} as {tuple(entry['shape'])}, not {shape}")
        arrays = [np.ascontiguousarray(given[entry["name"]]) for entry in wanted]
        data_format = "nchw" if any(array.ndim == 4 for array in arrays) else None
        with _printing_to_stderr():
            results = self.contexts[part].inference(inputs=arrays, data_format=data_format)
        if results is None or len(results) != len(self.outputs[part]):
            raise RuntimeError(f"the NPU gave no result for {part}: the runtime says why in the lines above")
        return {
            entry["name"]: _shaped(part, entry, result)
            for entry, result in zip(self.outputs[part], results, strict=True)
        }

    def close(self) -> None:
        """Release the contexts and their memory."""
        for context in self.contexts.values():
            context.release()
        self.contexts.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> RknnRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    options: `core_mask`, one of CORES (auto by default). Raises RuntimeError with one line.
    """
    core = str((options or {}).get("core_mask", "auto"))
    if core not in CORES:
        raise RuntimeError(f"no NPU core mask {core!r}: have {', '.join(CORES)}")
    mask = getattr(RKNNLite, f"NPU_CORE_{CORES[core]}")
    contexts = {}
    for name, part in parts.items():
        file = Path(folder) / part["file"]
        if not file.is_file():
            raise RuntimeError(f"no file {file} for part {name!r}")
        with _printing_to_stderr():
            context = RKNNLite()
            loaded = context.load_rknn(str(file))
            started = context.init_runtime(core_mask=mask) if loaded == 0 else -1
        if loaded != 0:
            raise RuntimeError(f"the NPU runtime cannot read {file} ({loaded}): the lines above say why")
        if started != 0:
            raise RuntimeError(
                f"the NPU runtime cannot start {file} ({started}): the lines above say why; mostly an older "
                "librknnrt.so than the toolkit, another SoC, or a driver that is not loaded"
            )
        contexts[name] = context
    return RknnRunner(contexts, parts)


def _shaped(part: str, entry: Tensor, result: Any) -> NDArray[Any]:
    array = np.asarray(result)
    if array.size != int(np.prod(entry["shape"])):
        raise RuntimeError(f"{part} gave {entry['name']} as {array.shape}, not {tuple(entry['shape'])}")
    return array.reshape(entry["shape"])


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Keep what the runtime prints, in C, off stdout: a session's result lines go there."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
