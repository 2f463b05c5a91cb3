"""The services of docker-compose.yml: commands, environment, dependencies and health checks.

Containers and native programs (nightjar/stack/native_services.py) start from the same file.
"""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nightjar.errors import BadOptions
from nightjar.paths import ROOT

FILE = ROOT / "docker-compose.yml"
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Health(NamedTuple):
    """A service's health check."""

    test: tuple[str, ...]  # a command; exit status 0 means healthy
    interval_s: float
    timeout_s: float
    retries: int  # consecutive failures until the service is unhealthy
    start_period_s: float  # failures do not count before


class Service(NamedTuple):
    """One service; a setting that the file leaves to the image is empty."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    needs: dict[str, str]  # service -> service_healthy or service_completed_successfully
    health: Health | None
    restart: str  # no, on-failure, unless-stopped
    stop_signal: str
    stop_grace_s: float
    user: str | None = None  # the account that it runs as, if not ours


def read_topology(path: Path = FILE) -> dict[str, Service]:
    """Read a compose file's services, each after the services it needs.

    Raises BadOptions if services need each other or an unknown one.
    """
    entries: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    services = {name: _service(name, entry) for name, entry in entries.items()}
    try:
        order = list(TopologicalSorter({name: each.needs for name, each in services.items()}).static_order())
    except CycleError as error:
        raise BadOptions(f"{path}: services need each other: {', '.join(sorted(set(error.args[1])))}") from error
    if unknown := [name for name in order if name not in services]:
        raise BadOptions(f"{path}: services need unknown ones: {', '.join(unknown)}")
    return {name: services[name] for name in order}


def _service(name: str, entry: dict[str, Any]) -> Service:
    health = None
    if check := entry.get("healthcheck"):
        form, *test = map(_unescape, check["test"])
        if form != "CMD":
            raise BadOptions(f"docker-compose.yml: health check {form}: write it as [CMD, program, argument, …]")
        times = {f"{each}_s": _seconds(check[each]) for each in ("interval", "timeout", "start_period")}
        health = Health(tuple(test), retries=int(check["retries"]), **times)
    return Service(
        name=name,
        command=tuple(map(_unescape, entry.get("command", ()))),
        environment={key: _unescape(value) for key, value in entry.get("environment", {}).items()},
        needs={needed: how["condition"] for needed, how in entry.get("depends_on", {}).items()},
        health=health,
        restart=str(entry.get("restart", "no")),
        stop_signal=str(entry.get("stop_signal", "SIGTERM")),
        stop_grace_s=_seconds(entry.get("stop_grace_period", "10s")),
    )


def _unescape(value: Any) -> str:
    """Undo compose's only escape. The file uses no compose variables, so that native services can read it too."""
    return str(value).replace("$$", "$")


def _seconds(duration: str) -> float:
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", duration))
