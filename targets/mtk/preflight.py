"""Check before a run whether a board's Neuron runtime can load a model.

A .dla has the version of its ncc-tflite, and a runtime of another schema refuses it with "The DLA file is
V<A>, mismatching runtime V<B>". Boards get this file as source: it imports the standard library and
nightjar/device/health.py.
"""

from __future__ import annotations  # versions() runs on boards, which have older Pythons

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from nightjar.device.health import Finding, parsed

LIBRARIES = ("libneuron_runtime.so", "libneuronusdk_runtime.mtk.so", "libneuronusdk_runtime.mtk.so.8")
SBIN = "/usr/sbin:/usr/local/sbin"  # sshd does not put them on every PATH


def versions() -> dict[str, str]:
    """Return this board's Neuron runtime version and whether /dev/apusys* can be opened."""
    return {"neuron": _runtime(), "apusys": _devices()}


def _runtime() -> str:
    if program := shutil.which("neuronrt") or shutil.which("neuronrt", path=SBIN):
        try:
            done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return found[0] if found else "unknown"
    folders = ("/usr/lib", "/usr/lib64", "/usr/lib/aarch64-linux-gnu", "/vendor/lib64", "/system/lib64")
    own = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    has_library = any(list(Path(folder).glob(f"{name}*")) for folder in (*own, *folders) for name in LIBRARIES)
    return "unknown" if has_library or os.environ.get("NIGHTJAR_NEURON") else "absent"


def _devices() -> str:
    found = sorted(Path("/dev").glob("apusys*"))
    if not found:
        return "absent"
    return "open" if all(os.access(path, os.R_OK | os.W_OK) for path in found) else "closed"


def fit(made_by: Mapping[str, str], board: Mapping[str, str]) -> Iterator[Finding]:
    """Yield why a .dla of this toolchain may not run on a board of these versions."""
    if board.get("apusys") == "closed":
        rule = 'KERNEL=="apusys*", MODE="0666"'
        yield Finding("refuse", f"/dev/apusys* cannot be opened: add the udev rule {rule}, or run as root")
    if board.get("apusys") == "absent":
        yield Finding("warn", "there is no /dev/apusys*: this board has no APU, or its driver is not loaded")
    compiler, runtime = parsed(made_by.get("ncc-tflite", "")), parsed(board.get("neuron", ""))
    if compiler and runtime and compiler[:1] != runtime[:1]:
        remedy = "a .dla of another major version does not load; install the SDK of the board's version"
        both = f"the Neuron runtime is {board['neuron']} and ncc-tflite {made_by['ncc-tflite']}"
        yield Finding("refuse", f"{both}: {remedy}")
    elif board.get("neuron") == "absent":
        packages = "mediatek-libneuron and mediatek-neuron-utils"
        yield Finding("refuse", f"there is no Neuron runtime: install {packages} on the board")
    elif not runtime:
        yield Finding("warn", "the board does not say which Neuron runtime it has (`neuronrt -v`)")
