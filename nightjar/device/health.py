"""Facts and health of a board; sent to boards, standard library only."""

from __future__ import annotations  # boards have older Pythons

import os
import platform
import re
import shutil
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

SYS = Path("/sys")
Level = Literal["refuse", "warn"]


class Finding(NamedTuple):
    """One finding of a preflight.py: with `refuse` the board does not run a target's files, with `warn` it may not."""

    level: Level
    message: str


def parsed(version: str | None) -> tuple[int, ...] | None:
    """Return the leading numbers of a version: (2, 3, 2) of `v2.3.2 (429f97ae6b@2025-04-09)`."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip()) if version else None
    return tuple(map(int, found[1].split("."))) if found else None


def soc() -> str:
    """Name the processor by /proc/cpuinfo, or by the device tree where that names none, as on ARM boards."""
    lines = [line.partition(":") for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    compatible = [name for name in _text("/proc/device-tree/compatible").split("\0") if name]
    name = "".join(line[2].strip() for line in lines[:1]) or "".join(compatible[-1:])
    return " ".join(filter(None, (platform.machine(), name, f"x{os.cpu_count()}")))


def facts(runtimes: list[str], probe: str = "") -> dict[str, Any]:
    """Return processor, Python and runtimes; probe: Python source of a target, whose versions() adds more."""
    found = {name: installed(name) for name in runtimes}
    if probe:
        space: dict[str, Any] = {"__name__": "probe"}
        exec(compile(probe, "probe", "exec"), space)
        found.update(space["versions"]())
    return {"soc": soc(), "python": platform.python_version(), "runtimes": found}


def installed(name: str) -> str:
    """Return the version of an installed distribution, "absent" where there is none or numpy cannot be imported."""
    try:
        if name == "numpy":  # a broken numpy has a version too
            import numpy

            return str(numpy.__version__)
        from importlib.metadata import version

        return version(name)
    except ImportError:  # PackageNotFoundError is one, and so is what a numpy of another Python raises
        return "absent"


def health(scratch: Path) -> dict[str, Any]:
    """Return what changes: bytes free, governor, temperature, throttling, the clock."""
    zones = [_text(SYS / f"class/thermal/thermal_zone{number}/temp").strip() for number in range(16)]
    degrees = [int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()]
    return {
        "disk_free_bytes": shutil.disk_usage(str(scratch)).free,
        "memory_free_bytes": memory_free_bytes(),
        "governor": _text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        "celsius": max(degrees) if degrees else None,
        "throttled": throttling(),
        "time_s": time.time(),
    }


def memory_free_bytes() -> int:
    """Return how much memory a new process may take, 0 where it is unknown."""
    memory = dict(line.split(":") for line in _text("/proc/meminfo").splitlines() if line.count(":") == 1)
    return int((memory.get("MemAvailable") or "0").split()[0]) * 1024


def throttling() -> str:
    """Describe what throttles a processor now: an active cooling device, or a capped clock; "" for nothing.

    Fans do not throttle. cpufreq and devfreq devices are cooled by lower clocks (Linux, thermal/sysfs-api).
    """
    for device in sorted(SYS.glob("class/thermal/cooling_device*")):
        kind, state = _text(device / "type").strip(), _text(device / "cur_state").strip()
        if state.isdigit() and int(state) and any(word in kind for word in ("cpufreq", "devfreq", "Processor")):
            return f"{kind} cooled, step {state} of {_text(device / 'max_state').strip()}"
    for policy in sorted(SYS.glob("devices/system/cpu/cpufreq/policy*")):
        most, allowed = (_text(policy / name).strip() for name in ("cpuinfo_max_freq", "scaling_max_freq"))
        if most.isdigit() and allowed.isdigit() and int(allowed) < int(most):
            return f"{policy.name} capped at {int(allowed) // 1000} of {int(most) // 1000} MHz"
    return ""


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
