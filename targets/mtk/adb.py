"""Run compiled parts on an Android device from this machine: `neuronrt` there, files by adb, the token loop here.

Every call pushes its inputs and pulls its outputs, so what a session times is mostly adb: `inference_ms` has what the
NPU took. numpy and the standard library only.
"""

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightjar.device.adb import SERIAL, pull, push, shell
from targets.mtk.runner import CALL_S, NeuronrtRunner

FOLDER = "/data/local/tmp/nightjar"
PUSH_S = 600.0


class AdbRunner(NeuronrtRunner):
    """Start `neuronrt` on the device for every call."""

    def __init__(self, serial: str, folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.serial = serial
        files = [folder / part["file"] for part in parts.values()]
        name = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]
        self.there = f"{FOLDER}/{name}"
        shell(serial, f"mkdir -p {self.there}", CALL_S)
        push(serial, files, self.there, PUSH_S)
        super().__init__("neuronrt", folder, parts)

    def place(self, path: Path) -> str:
        """Say where a file lies on the device."""
        return f"{self.there}/{path.name}"

    def send(self, files: Sequence[Path]) -> None:
        push(self.serial, files, self.there, PUSH_S)

    def fetch(self, files: Sequence[Path]) -> None:
        pull(self.serial, [self.place(path) for path in files], files[0].parent, PUSH_S)

    def _start(self, command: Sequence[str], file: Path) -> str:
        try:
            return shell(self.serial, f"cd {self.there} && LD_LIBRARY_PATH=. {shlex.join(command)}", CALL_S)
        except RuntimeError as exc:
            raise RuntimeError(f"neuronrt cannot run {file.name}: {exc}") from exc

    def close(self) -> None:
        """Delete what was pushed."""
        shell(self.serial, f"rm -rf {self.there}", CALL_S)


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> AdbRunner:
    """Open `parts` on the device that NIGHTJAR_ADB names; raises RuntimeError with one line."""
    for name, part in parts.items():
        if not (Path(folder) / part["file"]).is_file():
            raise RuntimeError(f"no file {Path(folder) / part['file']} for part {name!r}")
    return AdbRunner(os.environ[SERIAL], Path(folder), parts)


def versions(serial: str) -> dict[str, str]:
    """Ask a device for its SoC and its Neuron runtime; raises RuntimeError with one line."""
    soc = shell(serial, "getprop ro.soc.model", CALL_S).strip() or "unknown"
    try:
        said = shell(serial, "neuronrt -v", CALL_S)
    except RuntimeError:
        return {"soc": soc, "neuron": "absent"}
    words = [word for word in said.replace(":", " ").split() if word[:1].isdigit() and "." in word]
    return {"soc": soc, "neuron": words[0] if words else "unknown"}
