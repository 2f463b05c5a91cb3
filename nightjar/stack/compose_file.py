"""What nights run on, read from docker-compose.yml: its services, what starts them and what they need.

Containers and native packages (nightjar/stack/native_services.py) follow the same lines of it.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nightjar.errors import BadOptions
from nightjar.paths import ROOT

FILE = ROOT / "docker-compose.yml"
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Health(NamedTuple):
    """How a service is asked whether it is well."""

    test: tuple[str, ...]  # a command; exit status 0 says yes
    interval_s: float
    timeout_s: float
    retries: int  # as many misses in a row, and it is unwell
    start_period_s: float  # misses that do not count yet


class Service(NamedTuple):
    """One service of the file; what it leaves to the image is empty."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    needs: dict[str, str]  # service -> service_started, service_healthy, service_completed_successfully
    health: Health | None
    restart: str  # no, on-failure, unless-stopped
    stop_signal: str
    stop_grace_s: float


def read_topology(path: Path = FILE) -> dict[str, Service]:
    """Read a compose file's services, each after those that it needs; raises BadOptions when they need each other."""
    with path.open(encoding="utf-8") as file:
        written: dict[str, Any] = yaml.safe_load(file)["services"]
    services = {name: _service(name, said) for name, said in written.items()}
    ordered: dict[str, Service] = {}
    while len(ordered) < len(services):
        ready = [name for name in services if name not in ordered and services[name].needs.keys() <= ordered.keys()]
        if not ready:
            left = ", ".join(name for name in services if name not in ordered)
            raise BadOptions(f"{path}: these services wait for each other or for none there is: {left}")
        ordered |= {name: services[name] for name in ready}
    return ordered


def _service(name: str, said: dict[str, Any]) -> Service:
    checked = said.get("healthcheck")
    return Service(
        name=name,
        command=tuple(map(_plain, said.get("command", ()))),
        environment={key: _plain(value) for key, value in said.get("environment", {}).items()},
        needs={needed: how["condition"] for needed, how in said.get("depends_on", {}).items()},
        health=_health(checked) if checked else None,
        restart=str(said.get("restart", "no")),
        stop_signal=str(said.get("stop_signal", "SIGTERM")),
        stop_grace_s=_seconds(said.get("stop_grace_period", "10s")),
    )


def _health(said: dict[str, Any]) -> Health:
    form, *test = map(_plain, said["test"])
    if form != "CMD":
        raise BadOptions(f"docker-compose.yml: a health check is CMD and words, not {form}")
    return Health(
        test=tuple(test),
        interval_s=_seconds(said["interval"]),
        timeout_s=_seconds(said["timeout"]),
        retries=int(said["retries"]),
        start_period_s=_seconds(said["start_period"]),
    )


def _plain(value: Any) -> str:
    """Undo compose's only escape; the file uses none of its variables, so that both worlds read the same."""
    return str(value).replace("$$", "$")


def _seconds(said: str) -> float:
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", said))
