"""Run what stands in for a Hailo part: onnxruntime, its rounding done in float and none of it fused away."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort  # it marks no name as exported, hence the ignores below
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


class StandInRunner:
    """Hold one onnxruntime session per part."""

    def __init__(self, sessions: Mapping[str, Any]) -> None:
        self.sessions = dict(sessions)

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.sessions:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.sessions))}")
        names = [output.name for output in self.sessions[part].get_outputs()]
        try:
            return dict(zip(names, self.sessions[part].run(names, {**inputs, **constant}), strict=True))
        except Exception as exc:  # onnxruntime raises classes of its own, without a base
            raise RuntimeError(f"onnxruntime cannot run {part}: {_first_line(exc)}") from exc

    def close(self) -> None:
        """Drop the sessions and their memory."""
        self.sessions.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> StandInRunner:
    """Open `parts` (name to {"file", ...}, as in binary.json) that lie in `folder`.

    options: `threads` (every core by default). Raises RuntimeError with one line.
    """
    settings = ort.SessionOptions()  # type: ignore[attr-defined]
    settings.intra_op_num_threads = int((options or {}).get("threads", 0))
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    sessions = {}
    for name, part in parts.items():
        file = Path(folder) / part["file"]
        if not file.is_file():
            raise RuntimeError(f"no file {file} for part {name!r}")
        try:
            sessions[name] = ort.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
        except Exception as exc:  # see run
            raise RuntimeError(f"onnxruntime cannot load {file}: {_first_line(exc)}") from exc
    return StandInRunner(sessions)


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
