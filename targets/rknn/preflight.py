"""Check before a run whether a board's runtime and driver can load a toolkit's model.

Boards get it as source: it imports the standard library and nightjar/device/health.py.
"""

from __future__ import annotations  # versions() runs on boards, which have older Pythons

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nightjar.device.health import Finding, parsed

# Reported from boards: the runtime refuses the file of a newer toolkit, whatever the driver.
REFUSED = (
    # librknnrt, driver, toolkit, message, source
    ("1.3.0", "0.7.2", "2.3.0", "Invalid RKNN model version 6", "airockchip/rknn-toolkit2 issue 254"),
    ("1.4.0", "0.8.2", "1.5", "Invalid RKNN model version 6", "rockchip-linux/rknn-toolkit2 issue 212"),
    ("1.4.0", "0.9.8", "2.3.0", "Invalid RKNN model version 6", "airockchip/rknn-toolkit2 issue 281"),
    ("1.5.0", "0.9.0", "1.6 or later", "Invalid RKNN model version 6", "rockchip-linux/rknn-toolkit2 issue 316"),
)
REFUSED_UP_TO = (1, 5, 0)  # the newest runtime in REFUSED


def fit(made_by: Mapping[str, str], board: Mapping[str, str]) -> Iterator[Finding]:
    """Yield why a file of this toolchain (its versions) may not run on a board of these versions."""
    known = {name: version for name, version in board.items() if version != "absent"}
    toolkit, runtime, driver = made_by.get("rknn-toolkit2", ""), known.get("librknnrt"), known.get("rknpu")
    needed, have = parsed(toolkit), parsed(runtime)
    update = f"install librknnrt.so {toolkit} as /usr/lib/librknnrt.so on the board"
    if have is None:
        yield Finding("warn", f"the board does not say which librknnrt.so it has: {update} if a model does not load")
    elif have <= REFUSED_UP_TO:
        yield Finding("refuse", f"librknnrt.so {runtime} says 'Invalid RKNN model version 6' to newer models: {update}")
    elif needed is not None and have[:2] < needed[:2]:
        yield Finding(
            "warn", f"librknnrt.so {runtime} is older than toolkit {toolkit}: {update} if a model does not load"
        )
    kernel = parsed(driver)
    if kernel is None:
        yield Finding("warn", "the board does not say which NPU driver it has: look for RKNPU in `dmesg`")
    elif kernel < (0, 9):
        yield Finding("warn", f"NPU driver {driver} is older than the 0.9 series: update the board's kernel")


def versions() -> dict[str, str]:
    """Return the versions of this board's librknnrt.so and NPU driver, `absent` where there is none."""
    libraries = [f"{folder}/librknnrt.so" for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib")]
    drivers = ("/sys/kernel/debug/rknpu/version", "/proc/rknpu/version", "/sys/module/rknpu/version")
    return {
        "librknnrt": _find_version(rb"librknnrt version: (\d[\w. ()@:-]{0,80})", libraries),
        "rknpu": _find_version(rb"v?(\d+\.\d+[.\d]*)", drivers),
    }


def _find_version(pattern: bytes, paths: Iterable[str]) -> str:
    """Return the version in the first file that has one."""
    for path in paths:
        with contextlib.suppress(OSError):
            if found := re.search(pattern, Path(path).read_bytes()):
                return found[1].decode("ascii").strip()
    return "absent"
