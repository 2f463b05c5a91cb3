"""Run compiled parts on the NPU with rknn-toolkit-lite2: numpy and rknnlite only.

The contract, as rknn-toolkit-lite2 2.5.0 documents it in rknnlite/api/rknn_lite.py: `load_rknn` and `init_runtime`
return 0 or -1 and raise nothing, `inference` returns a list of arrays or None; the reason of a failure is printed.
`data_format` is `nchw` because the runtime takes every 4-D input for NHWC otherwise. Only a model of the board's own
SoC loads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rknnlite.api import RKNNLite  # type: ignore[import-not-found]  # aarch64 boards only

from nightjar.device.part_io import PartRunner, Parts, require_file, stdout_to_stderr

# RKNNLite's names; one core of three by default. Two or three at once split a model's layers between them.
CORES = ("auto", "0", "1", "2", "0_1", "0_1_2", "all")


class RknnRunner(PartRunner):
    """Hold one runtime context per part."""

    runtime = "the NPU"

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[Any] | None:
        arrays = [np.ascontiguousarray(array) for array in arrays]
        data_format = "nchw" if any(array.ndim == 4 for array in arrays) else None
        with stdout_to_stderr():
            results: list[Any] | None = self.handles[part].inference(inputs=arrays, data_format=data_format)
        return results

    def release(self, handle: Any) -> None:
        handle.release()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> RknnRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    options: `core_mask`, one of CORES (auto by default). Raises RuntimeError with one line.
    """
    core = str((options or {}).get("core_mask", "auto"))
    if core not in CORES:
        raise RuntimeError(f"no NPU core mask {core!r}: have {', '.join(CORES)}")
    mask = getattr(RKNNLite, f"NPU_CORE_{core.upper()}")
    contexts = {}
    for name, part in parts.items():
        file = require_file(folder, part["file"], name)
        with stdout_to_stderr():
            context = RKNNLite()
            loaded = context.load_rknn(str(file))
            started = context.init_runtime(core_mask=mask) if loaded == 0 else -1
        if loaded != 0:
            raise RuntimeError(f"the NPU runtime cannot read {file} ({loaded}): see its messages above")
        if started != 0:
            raise RuntimeError(
                f"the NPU runtime cannot start {file} ({started}): see its messages above; usual causes are an older "
                "librknnrt.so than the toolkit, another SoC, or a driver that is not loaded"
            )
        contexts[name] = context
    return RknnRunner(contexts, parts)
