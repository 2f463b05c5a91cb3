"""Devices reached by adb: Android has no Python, so the session runs on the host and its runner calls it.

Standard library only: a target's adb.py travels in the session's zipapp. An old adbd does not return exit codes, so
they are echoed.
"""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

SERIAL = "NIGHTJAR_ADB"  # in the session's environment: which device
ENDED = re.compile(r"^RC=(\d+)\s*\Z", re.MULTILINE)


def devices() -> list[str]:
    """List the serials of connected and authorised devices; raises RuntimeError without adb."""
    lines = _adb(["devices"], 20).splitlines()
    return [line.partition("\t")[0] for line in lines if line.rstrip().endswith("\tdevice")]


def shell(serial: str, command: str, timeout_s: float) -> str:
    """Run a line of the device's shell and return what it prints; raises RuntimeError with its last line."""
    output = _adb(["-s", serial, "shell", f"{{ {command}; }} 2>&1; echo RC=$?"], timeout_s).replace("\r", "")
    ended = ENDED.search(output)
    before = output[: ended.start()] if ended else output
    if ended is None or ended[1] != "0":
        lines = [line.strip() for line in before.splitlines() if line.strip()]
        status = f"exit status {ended[1]}" if ended else "it did not end"
        raise RuntimeError(f"{lines[-1][:300] if lines else 'it printed nothing'} ({status})")
    return before


def push(serial: str, files: Sequence[Path], folder: str, timeout_s: float) -> None:
    """Copy files into a folder of the device."""
    _adb(["-s", serial, "push", *map(str, files), f"{folder}/"], timeout_s)


def pull(serial: str, files: Sequence[str], folder: Path, timeout_s: float) -> None:
    """Copy files of the device into a folder."""
    _adb(["-s", serial, "pull", *files, str(folder)], timeout_s)


def _adb(arguments: Sequence[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            ["adb", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, errors="replace"
        )
    except FileNotFoundError:
        raise RuntimeError("no adb on PATH: `apt install adb`") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"adb {shlex.join(arguments[:4])} did not end within {timeout_s:g} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"adb: {lines[-1][:300] if lines else f'exit status {done.returncode}'}")
    return done.stdout
