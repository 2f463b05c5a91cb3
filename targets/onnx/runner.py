"""Run compiled parts with onnxruntime: on a board, on a host, as the reference."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort  # it marks no name as exported, hence the ignores below
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


class OnnxRunner:
    """Hold one onnxruntime session per part."""

    def __init__(self, sessions: Mapping[str, Any]) -> None:
        self.sessions = dict(sessions)
        self.outputs = {part: [o.name for o in s.get_outputs()] for part, s in sessions.items()}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line.

        onnxruntime reads numpy's memory in place, so `constant` inputs cost nothing to pass again.
        """
        if part not in self.sessions:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.sessions))}")
        try:
            results = self.sessions[part].run(self.outputs[part], {**inputs, **constant})
        except Exception as exc:  # onnxruntime raises classes of its own, without a base
            raise RuntimeError(f"onnxruntime cannot run {part}: {_first_line(exc)}") from exc
        return dict(zip(self.outputs[part], results, strict=True))

    def close(self) -> None:
        """Drop the sessions and their memory."""
        self.sessions.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> OnnxRunner:
    """Open `parts` (name to {"file", ...}, as in binary.json or model.json) that lie in `folder`.

    options: `threads` (every core by default), `own_process` (nothing else here uses onnxruntime). Raises RuntimeError
    with one line.
    """
    settings = ort.SessionOptions()  # type: ignore[attr-defined]
    settings.intra_op_num_threads = int((options or {}).get("threads", 0))  # 0: every core
    # Older ones, such as beside rknn-toolkit2, cannot share.
    if (options or {}).get("own_process") and hasattr(ort, "set_global_thread_pool_sizes"):
        _share_threads()
        settings.use_per_session_threads = False
    settings.log_severity_level = 3
    sessions = {}
    for name, part in parts.items():
        file = Path(folder) / part["file"]
        if not file.is_file():
            raise RuntimeError(f"no file {file} for part {name!r}")
        try:
            sessions[name] = ort.InferenceSession(  # type: ignore[attr-defined]
                str(file), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # see run
            raise RuntimeError(f"onnxruntime cannot load {file}: {_first_line(exc)}") from exc
    return OnnxRunner(sessions)


@functools.cache
def _share_threads() -> None:
    """Let all parts use one pool of a thread per core: a part's own pool spins on after its run and slows the next.

    From then on every onnxruntime session of this process must use it.
    """
    ort.set_global_thread_pool_sizes(len(os.sched_getaffinity(0)), 1)  # type: ignore[attr-defined]


def _first_line(exc: Exception) -> str:
    """Cut an onnxruntime error down to one line."""
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
