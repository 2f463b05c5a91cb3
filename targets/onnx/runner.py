"""Run compiled parts with onnxruntime: on a board, on a host, as the reference."""

import functools
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # it marks no name as exported, hence the ignores below
from numpy.typing import NDArray

from nightjar.device.part_io import Tensors, first_line, require_file, require_part

THREADS = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0)


class OnnxRunner:
    """One onnxruntime session per part; a part may still be opening until it is run."""

    def __init__(self, sessions: Mapping[str, "Future[Any]"]) -> None:
        self.sessions = dict(sessions)

    def run(
        self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}, into: Mapping[str, Any] = {}
    ) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line.

        onnxruntime reads numpy's memory in place, so `constant` inputs cost nothing to pass again. into: contiguous
        arrays for all outputs, which are then written there.
        """
        require_part(part, self.sessions)
        session, given = self.sessions[part].result(), {**inputs, **constant}
        try:
            if into:
                binding = session.io_binding()
                for name, array in given.items():
                    binding.bind_cpu_input(name, np.ascontiguousarray(array))
                for name, array in into.items():
                    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                session.run_with_iobinding(binding)
                return dict(into)
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, given), strict=True))
        except Exception as exc:  # onnxruntime raises classes of its own, without a base
            raise RuntimeError(f"onnxruntime cannot run {part}: {first_line(exc)}") from exc

    def close(self) -> None:
        """Drop the sessions and their memory."""
        self.sessions.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> OnnxRunner:
    """Open `parts` (name to {"file", ...}, as in binary.json or model.json) of `folder`.

    options: `threads` (by default OMP_NUM_THREADS, else every core), `settings` (onnxruntime's session configuration),
    `own_process` (nothing else in this process uses onnxruntime): the first part can then run while the others open,
    and their errors are raised when they run. Raises RuntimeError with one line.
    """
    own_process = bool((options or {}).get("own_process"))
    settings = ort.SessionOptions()  # type: ignore[attr-defined]
    # Older versions, such as beside rknn-toolkit2, have no shared pool.
    if own_process and hasattr(ort, "set_global_thread_pool_sizes"):
        _share_threads()
        settings.use_per_session_threads = False
    else:
        settings.intra_op_num_threads = int((options or {}).get("threads", THREADS))  # 0: every core
    settings.log_severity_level = 3
    for key, value in (options or {}).get("settings", {}).items():
        settings.add_session_config_entry(key, value)

    def open_part(file: Path) -> Any:
        try:
            return ort.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
        except Exception as exc:  # see run
            raise RuntimeError(f"onnxruntime cannot load {file}: {first_line(exc)}") from exc

    files = {name: require_file(folder, part["file"], name) for name, part in parts.items()}
    opener = ThreadPoolExecutor(1)  # in order: the parts run in that order too
    sessions = {name: opener.submit(open_part, file) for name, file in files.items()}
    opener.shutdown(wait=False)
    for session in list(sessions.values())[: 1 if own_process else None]:
        session.result()
    return OnnxRunner(sessions)


@functools.cache
def _share_threads() -> None:
    """Let all parts use one pool of threads: a part's own pool spins on after its run and slows the next.

    From then on every onnxruntime session of this process must use it.
    """
    ort.set_global_thread_pool_sizes(THREADS or len(os.sched_getaffinity(0)), 1)  # type: ignore[attr-defined]
