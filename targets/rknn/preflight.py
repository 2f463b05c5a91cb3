"""Say before a run whether a board's runtime and driver can take a model: standard library only, nothing is started.

A model says which toolkit made it (binary.json), the board which librknnrt.so and which kernel driver it has
(`librknnrt version: …` and `RKNN Driver Information: version: …` in the runtime's own first lines).
"""

from __future__ import annotations  # versions() runs on boards, which have older Pythons

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

# What people met on boards: the runtime refuses a newer toolkit's file, whatever the driver.
REFUSED = (
    # librknnrt, driver, toolkit, message, source
    ("1.3.0", "0.7.2", "2.3.0", "Invalid RKNN model version 6", "airockchip/rknn-toolkit2 issue 254"),
    ("1.4.0", "0.8.2", "1.5", "Invalid RKNN model version 6", "rockchip-linux/rknn-toolkit2 issue 212"),
    ("1.4.0", "0.9.8", "2.3.0", "Invalid RKNN model version 6", "airockchip/rknn-toolkit2 issue 281"),
    ("1.5.0", "0.9.0", "1.6 or later", "Invalid RKNN model version 6", "rockchip-linux/rknn-toolkit2 issue 316"),
)
REFUSED_UP_TO = (1, 5, 0)  # the newest runtime in REFUSED


class Finding(NamedTuple):
    """One thing found: `refuse` will not run, `warn` may not."""

    level: Literal["refuse", "warn"]
    message: str


def preflight(toolkit: str, runtime: str | None, driver: str | None) -> Iterator[Finding]:
    """Yield what stands against running a file of this toolkit under this runtime and driver, None for unknown.

    A runtime as new as the toolkit's and a driver of the 0.9 series give nothing.
    """
    made, have = parsed(toolkit), parsed(runtime)
    update = f"install librknnrt.so {toolkit} as /usr/lib/librknnrt.so on the board"
    if have is None:
        yield Finding("warn", f"the board does not say which librknnrt.so it has: {update} if a model does not load")
    elif have <= REFUSED_UP_TO:
        yield Finding("refuse", f"librknnrt.so {runtime} says 'Invalid RKNN model version 6' to newer models: {update}")
    elif made is not None and have[:2] < made[:2]:
        yield Finding(
            "warn", f"librknnrt.so {runtime} is older than toolkit {toolkit}: {update} if a model does not load"
        )
    kernel = parsed(driver)
    if kernel is None:
        yield Finding("warn", "the board does not say which NPU driver it has: look for RKNPU in `dmesg`")
    elif kernel < (0, 9):
        yield Finding("warn", f"NPU driver {driver} is of before the 0.9 series: update the board's kernel")


def versions() -> dict[str, str]:
    """Ask the board this runs on for its librknnrt.so and NPU driver; what does not say is absent."""
    return {"librknnrt": _runtime_version(), "rknpu": _driver_version()}


def _runtime_version() -> str:
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"):
        library = Path(folder) / "librknnrt.so"
        try:
            found = re.search(rb"librknnrt version: (\d[\w. ()@:-]{0,80})", library.read_bytes())
        except OSError:
            continue
        if found:
            return found.group(1).decode("ascii").strip()
    return "absent"


def _driver_version() -> str:
    for path in ("/sys/kernel/debug/rknpu/version", "/proc/rknpu/version", "/sys/module/rknpu/version"):
        try:
            found = re.search(r"v?(\d+\.\d+[.\d]*)", Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return found.group(1)
    return "absent"


def fit(made_by: Mapping[str, str], board: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what stands against running what this toolchain makes (its pins) on a board of these versions."""
    known = {name: found if found != "absent" else None for name, found in board.items()}
    yield from preflight(made_by.get("rknn-toolkit2", ""), known.get("librknnrt"), known.get("rknpu"))


def parsed(version: str | None) -> tuple[int, ...] | None:
    """Read the numbers a version begins with, after an optional v: `2.3.2 (429f97ae6b@2025-04-09)` is (2, 3, 2)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip()) if version else None
    return tuple(map(int, found[1].split("."))) if found else None
