"""The folder of a stack on this machine: secrets, ports, logs, and the status of its services.

stack/
  secrets/     database_password, pgpass, the board's keys: for their owner only; also for docker-compose.yml
  board/       boards.toml and ssh_config for the stand-in board, its sshd_config and scratch
  database/  server/  worker/  logs/
  ports.json   kept across restarts if they are free
  stopped/     a file per service that must not run
  state.json   written by the supervisor, which holds `lock`
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nightjar.errors import BadOptions, PackageMissing
from nightjar.files import read_json, read_json_object, write_atomic
from nightjar.locks import acquire
from nightjar.paths import ROOT

PORTS = {"server": 4200, "database": 0, "worker": 0, "board": 0}  # at first; 0: any; the UI's as in Prefect's docs


class ServiceState(NamedTuple):
    """The status of a service; `start_time` (seconds since 1970) detects a pid that was reused."""

    status: str  # waiting, starting, healthy, unhealthy, done, stopped, ended
    pid: int = 0
    start_time: float = 0
    restarts: int = 0


class StackState(NamedTuple):
    """What the supervisor last wrote: its pid, the ports, and the services by name (the key `parts` of state.json)."""

    pid: int
    ports: dict[str, int]
    parts: dict[str, ServiceState]

    @property
    def well(self) -> bool:
        """Whether every service does its work or was stopped on purpose."""
        return all(each.status in ("healthy", "done", "stopped") for each in self.parts.values())


def stack_folder(requested: Path | None) -> Path:
    """Return the stack's folder: the requested one, that of NIGHTJAR_STACK, or stack/ of this checkout."""
    return (requested or Path(os.environ.get("NIGHTJAR_STACK") or ROOT / "stack")).absolute()


def ui_address(ports: dict[str, int]) -> str:
    """Return the UI's URL; the API is below it at /api."""
    return f"http://127.0.0.1:{ports['server']}"


def write_secrets(folder: Path) -> None:
    """Create missing secrets: a database password, and the keys of the stand-in board and of its clients.

    Raises PackageMissing without OpenSSH's client.
    """
    if shutil.which("ssh-keygen") is None:
        raise PackageMissing("ssh-keygen, for the board's keys, is not installed: `apt install openssh-client`")
    place = folder / "secrets"
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)
    password = place / "database_password"
    if not password.exists():
        _write_private(password, secrets.token_hex(24))
    _write_private(place / "pgpass", f"*:*:*:nightjar:{password.read_text()}\n")
    for name in ("board_host_key", "board_user_key"):
        if not (place / name).exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"nightjar-{name}", "-f", str(place / name)],
                check=True,
                capture_output=True,
            )
    shutil.copyfile(place / "board_user_key.pub", place / "board_authorized_keys")
    (place / "board_authorized_keys").chmod(0o644)  # sshd reads it as the user who logs in
    write_known_hosts(folder)


def write_known_hosts(folder: Path) -> None:
    """Write the board's host key under its names in containers and, with its port, on this machine."""
    place, port = folder / "secrets", read_json_object(folder / "ports.json").get("board")
    key = " ".join((place / "board_host_key.pub").read_text().split()[:2])
    here = f"[127.0.0.1]:{port} {key}\n" if port else ""
    _write_private(place / "known_hosts", f"board {key}\n{here}")


def choose_ports(folder: Path, ui_port: int | None) -> dict[str, int]:
    """Choose a free loopback port for each service that listens: the last one, or another if that is taken.

    ui_port: the UI's, if a person named one. Raises BadOptions if it is taken.
    """
    if ui_port is not None and not _free_port(ui_port):
        raise BadOptions(f"port {ui_port} is in use on this machine: give a free one with --port, or omit it")
    wanted = PORTS | read_json_object(folder / "ports.json") | ({"server": ui_port} if ui_port is not None else {})
    ports: dict[str, int] = {}
    for name in PORTS:
        port = _free_port(wanted[name])
        while not port or port in ports.values():
            port = _free_port(0)
        ports[name] = port
    write_atomic(folder / "ports.json", json.dumps(ports))
    return ports


def read_state(folder: Path) -> StackState | None:
    """Read the last state of a stack; None if there is none."""
    try:
        state: dict[str, Any] = read_json(folder / "state.json")
        services = {name: ServiceState(*each) for name, each in state["parts"].items()}
        return StackState(state["pid"], state["ports"], services)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def supervisor_lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of the stack's supervisor; yields False if another process holds it."""
    end = time.monotonic() + 0.2  # `is_supervised` of another process holds it for a moment
    while (lock := acquire(folder / "lock", wait=False)) is None and time.monotonic() < end:
        time.sleep(0.02)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def is_supervised(folder: Path) -> bool:
    """Tell whether a supervisor runs for this folder."""
    if not (folder / "lock").exists():
        return False
    with supervisor_lock(folder) as ours:
        return not ours


def set_stopped(folder: Path, service: str, stopped: bool) -> None:
    """Tell the supervisor to stop a service, or to run it again."""
    mark = folder / "stopped" / service
    if stopped:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)


def _free_port(port: int) -> int:
    """Return a loopback port if it is free, else 0; for port 0, any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        free: int = probe.getsockname()[1]
        return free
