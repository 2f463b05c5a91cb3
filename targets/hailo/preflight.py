"""Check before a run whether a board's chip, HailoRT and driver can run a .hef.

A .hef is made for one chip by one DFC. Python binding, library, driver and firmware of HailoRT must be of one version.
Boards get this file as source: it imports the standard library and nightjar/device/health.py.
"""

from __future__ import annotations  # versions() runs on boards, which have older Pythons

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from nightjar.device.health import Finding, Level, parsed

HW_ARCH = "hailo8l"  # the default of --target-options hw_arch=
# A chip -> the chips whose .hef files it takes (hailo-ai/hailort, device_internal.cpp).
TAKES = {"HAILO8L": ("hailo8l",), "HAILO8": ("hailo8", "hailo8l"), "HAILO8R": ("hailo8r",)}
PAIRS = {"3.33": "4.23", "3.31": "4.21", "3.30": "4.20", "3.29": "4.19"}  # DFC -> HailoRT

LEVELS: dict[str, Level] = {"driver": "refuse", "firmware": "warn"}  # where its version is not HailoRT's


def fit(made_by: Mapping[str, str], board: Mapping[str, str]) -> Iterator[Finding]:
    """Yield why a .hef of this toolchain (its versions) may not run on a board of these versions."""
    known = {name: version for name, version in board.items() if version != "absent"}
    dfc, chip = made_by.get("hailo-dataflow-compiler", ""), known.get("hailo chip")
    hailort = known.get("hailort library") or known.get("hailort")
    if chip is None:
        yield Finding("warn", "the board does not say which chip it has: `hailortcli fw-control identify`")
    elif chip not in TAKES:
        yield Finding("refuse", f"its chip is {chip}, whose .hef files need another line of the DFC")
    elif HW_ARCH not in TAKES[chip]:
        own = TAKES[chip][0]
        yield Finding("warn", f"its chip is {chip} and takes no .hef of {HW_ARCH}: pass --target-options hw_arch={own}")
    elif TAKES[chip][0] != HW_ARCH:
        yield Finding("warn", f"its chip is {chip} and runs a .hef of {HW_ARCH} slower than its own")
    have = parsed(hailort)
    if have is None:
        yield Finding("warn", "the board does not say which HailoRT it has: `hailortcli --version`")
    else:
        if have[0] >= 5:
            yield Finding("refuse", f"HailoRT {hailort} is for Hailo-10H and 15: install 4.23 on the board")
        pair = next((version for compiler, version in PAIRS.items() if dfc.startswith(compiler)), None)
        if pair is not None and have[:2] < (parsed(pair) or ()):
            older = f"HailoRT {hailort} is older than {pair}, the pair of DFC {dfc}"
            yield Finding("warn", f"{older}: update it if a .hef fails")
        for name, level in LEVELS.items():
            other = known.get(f"hailo {name}")
            if (parsed(other) or have)[:3] != have[:3]:
                one = f"they must be of one version, install the {name} of this HailoRT"
                yield Finding(level, f"its {name} is {other} and HailoRT {hailort}: {one}")
    if parsed(known.get("hailo driver")) is None:
        yield Finding("warn", "the board does not say which driver it has: look for hailo in `dmesg`")


def versions() -> dict[str, str]:
    """Return this board's chip and versions of HailoRT, driver and firmware, `absent` where not found."""
    identity, version = _output("hailortcli", "fw-control", "identify"), _output("hailortcli", "--version")
    modules = [Path("/sys/module", name, "version") for name in ("hailo_pci", "hailo1x_pci", "hailo_integrated_nnc")]
    driver = next((path.read_text(encoding="utf-8", errors="replace") for path in modules if path.is_file()), "")
    return {
        "hailo chip": _match(r"Device Architecture:\s*(\w+)", identity),
        "hailort library": _match(r"version\s+v?(\d+\.\d+\.\d+)", version),
        "hailo driver": _match(r"(\d+\.\d+\.\d+)", driver),
        "hailo firmware": _match(r"Firmware Version:\s*(\d+\.\d+\.\d+)", identity),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _match(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else "absent"
