"""Run compiled parts on an Android device: `neuronrt` runs there, files go by adb, the token loop runs here.

A session's times are mostly adb's; `inference_ms` has the NPU's own. numpy and the standard library only.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightjar.device.adb import SERIAL, pull, push, shell
from nightjar.device.part_io import Parts, errors_as, require_file
from targets.mtk.runner import CALL_S, NeuronrtRunner

PUSH_S = 600.0


class AdbRunner(NeuronrtRunner):
    """Start `neuronrt` on the device for every call."""

    def __init__(self, serial: str, folder: Path, parts: Parts) -> None:
        self.serial = serial
        files = [folder / part["file"] for part in parts.values()]
        name = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]
        self.there = f"/data/local/tmp/nightjar/{name}"
        shell(serial, f"mkdir -p {self.there}", CALL_S)
        push(serial, files, self.there, PUSH_S)
        super().__init__("neuronrt", folder, parts)

    def start(
        self, file: Path, arguments: Sequence[str | Path], inputs: Sequence[Path] = (), outputs: Sequence[Path] = ()
    ) -> str:
        if inputs:
            push(self.serial, inputs, self.there, PUSH_S)
        words = [word if isinstance(word, str) else f"{self.there}/{word.name}" for word in arguments]
        with errors_as(f"neuronrt cannot run {file.name}"):
            command = f"cd {self.there} && LD_LIBRARY_PATH=. {shlex.join([self.program, *words])}"
            output = shell(self.serial, command, CALL_S)
        if outputs:
            pull(self.serial, [f"{self.there}/{path.name}" for path in outputs], outputs[0].parent, PUSH_S)
        return output

    def close(self) -> None:
        """Delete the pushed files."""
        shell(self.serial, f"rm -rf {self.there}", CALL_S)


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> AdbRunner:
    """Open `parts` on the device that NIGHTJAR_ADB names; raises RuntimeError with one line."""
    for name, part in parts.items():
        require_file(folder, part["file"], name)
    return AdbRunner(os.environ[SERIAL], Path(folder), parts)


def versions(serial: str) -> dict[str, str]:
    """Return a device's SoC and Neuron runtime version; raises RuntimeError with one line."""
    soc = shell(serial, "getprop ro.soc.model", CALL_S).strip() or "unknown"
    try:
        found = re.search(r"\d+(\.\d+)+", shell(serial, "neuronrt -v", CALL_S))
    except RuntimeError:
        return {"soc": soc, "neuron": "absent"}
    return {"soc": soc, "neuron": found[0] if found else "unknown"}
