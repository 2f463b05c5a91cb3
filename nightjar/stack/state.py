"""The folder of a stack on this machine: secrets, ports, logs, and what its parts are doing.

stack/
  secrets/     database_password, pgpass, the board's keys: for their owner alone; also docker-compose.yml's
  board/       boards.toml and ssh_config that lead to the board, its sshd_config and scratch
  database/  server/  worker/  logs/
  ports.json   the same after a restart, as long as they are free
  stopped/     a file per part that is to stay down
  state.json   written by who keeps the stack running and holds `lock`
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
from nightjar.files import write_atomic
from nightjar.locks import acquire
from nightjar.paths import ROOT

PORTS = ("server", "database", "worker", "board")
UI_PORT = 4200  # where Prefect's documentation has it


class PartState(NamedTuple):
    """What a part is doing; `born`, its process's start in clock ticks since boot, tells a pid that is used again."""

    doing: str  # waiting, starting, healthy, unhealthy, done, stopped, ended
    pid: int = 0
    born: int = 0
    restarts: int = 0


class State(NamedTuple):
    """What who keeps a stack running last said of it."""

    pid: int
    ports: dict[str, int]
    parts: dict[str, PartState]

    @property
    def well(self) -> bool:
        """Whether every part does what it is there for; one that was stopped on purpose does."""
        return all(part.doing in ("healthy", "done", "stopped") for part in self.parts.values())


def stack_folder(asked: Path | None) -> Path:
    """Name the folder of the stack: the one asked for, that of NIGHTJAR_STACK, or stack/ of this checkout."""
    return (asked or Path(os.environ.get("NIGHTJAR_STACK") or ROOT / "stack")).absolute()


def ui_address(ports: dict[str, int]) -> str:
    """Return where the UI is; the API is below it at /api."""
    return f"http://127.0.0.1:{ports['server']}"


def write_secrets(folder: Path) -> None:
    """Make what is missing of the secrets: a database password, and the keys of the board and of who visits it.

    Raises PackageMissing without OpenSSH's client.
    """
    if shutil.which("ssh-keygen") is None:
        raise PackageMissing(
            "no ssh-keygen on this machine, which makes the board's keys: `apt install openssh-client`"
        )
    kept = folder / "secrets"
    kept.mkdir(parents=True, exist_ok=True)
    kept.chmod(0o700)
    password = kept / "database_password"
    if not password.exists():
        _write_private(password, secrets.token_hex(24))
    _write_private(kept / "pgpass", f"*:*:*:nightjar:{password.read_text()}\n")
    for name in ("board_host_key", "board_user_key"):
        if not (kept / name).exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"nightjar-{name}", "-f", str(kept / name)],
                check=True,
                capture_output=True,
            )
    shutil.copyfile(kept / "board_user_key.pub", kept / "board_authorized_keys")
    (kept / "board_authorized_keys").chmod(0o644)  # sshd reads it as the user who comes
    write_known_hosts(folder)


def write_known_hosts(folder: Path) -> None:
    """Write the board's host key down under the names that it has in containers and, with its port, on this machine."""
    kept, port = folder / "secrets", _last_ports(folder).get("board")
    key = " ".join((kept / "board_host_key.pub").read_text().split()[:2])
    here = f"[127.0.0.1]:{port} {key}\n" if port else ""
    _write_private(kept / "known_hosts", f"board {key}\n{here}")


def choose_ports(folder: Path, asked: int | None) -> dict[str, int]:
    """Choose a free port of loopback for each part: the one of last time, or another where that is taken.

    Raises BadOptions when the UI's was asked for and is taken.
    """
    last = _last_ports(folder)
    ports: dict[str, int] = {}
    for name in PORTS:
        wanted = last.get(name, UI_PORT if name == "server" else 0)
        if name == "server" and asked is not None:
            if not _free(asked):
                raise BadOptions(f"port {asked} is taken on this machine: give a free one with --port, or none")
            wanted = asked
        ports[name] = wanted if wanted and _free(wanted) else _any_free(set(ports.values()))
    write_atomic(folder / "ports.json", json.dumps(ports))
    return ports


def _last_ports(folder: Path) -> dict[str, int]:
    last: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        last = json.loads((folder / "ports.json").read_text(encoding="utf-8"))
    return last


def read_state(folder: Path) -> State | None:
    """Read what was last said of a stack; None where nothing was."""
    try:
        said: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return State(said["pid"], said["ports"], {name: PartState(*part) for name, part in said["parts"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_state(folder: Path, state: State) -> None:
    """Say what a stack is doing."""
    write_atomic(folder / "state.json", json.dumps(state._asdict()))


@contextlib.contextmanager
def supervisor_lock(folder: Path) -> Iterator[bool]:
    """Hold the right to keep a stack running; gives False where another process has it."""
    lock = None
    for attempt in range(10):  # a process that only asks whether it is held holds it for a moment
        if (lock := acquire(folder / "lock", wait=False)) is not None:
            break
        time.sleep(0.02 * (attempt < 9))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def is_supervised(folder: Path) -> bool:
    """Say whether some process keeps the stack of this folder running."""
    if not (folder / "lock").exists():
        return False
    with supervisor_lock(folder) as ours:
        return not ours


def set_stopped(folder: Path, part: str, down: bool) -> None:
    """Ask who keeps the stack running to leave a part down, or to have it up again."""
    mark = folder / "stopped" / part
    if down:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def is_stopped(folder: Path, part: str) -> bool:
    """Say whether a part is to stay down."""
    return (folder / "stopped" / part).exists()


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_free(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
