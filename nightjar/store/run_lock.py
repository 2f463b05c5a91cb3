"""Who is at work on a deployed run: a lock per run, which the kernel takes back when its holder is gone.

A killed worker leaves its runs `Running` on the server for good. The lock tells such an orphan from a run that is
merely silent, at once and without a clock; only where the lock's file cannot be seen (another machine, another store)
has a heartbeat to do.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, ValidationError

from nightjar.files import storage_errors
from nightjar.locks import locked, try_lock
from nightjar.paths import store_folder


class RunHolder(BaseModel, frozen=True):
    """One process's attempt at a run: the first, or after a retry a later one."""

    host: str
    pid: int
    number: int


@contextlib.contextmanager
def hold_run(run: str, number: Callable[[], int], folder: Path | None = None) -> Iterator[None]:
    """Hold a run's lock while this process is at work on it; who has it already is waited for.

    number: asked once the lock is ours, which attempt this is. Raises StoreBroken where the folder cannot be written.
    """
    path = _file(run, folder)
    with contextlib.ExitStack() as held:
        with storage_errors():
            lock = held.enter_context(locked(path))
        held.callback(path.unlink, missing_ok=True)
        attempt = RunHolder(host=socket.gethostname(), pid=os.getpid(), number=number())
        with storage_errors():
            os.ftruncate(lock, 0)
            os.write(lock, attempt.model_dump_json().encode())
        yield


def run_status(
    run: str, number: int, folder: Path | None = None
) -> tuple[Literal["held", "gone", "unknown"], RunHolder | None]:
    """Say whether a process is at work on this attempt at a run, was and is gone, or cannot be seen from here."""
    try:
        with _file(run, folder).open() as lock:
            if not try_lock(lock.fileno(), fcntl.LOCK_SH):
                return "held", _read(lock)
            attempt = _read(lock)
    except FileNotFoundError:
        return "unknown", None
    return ("gone" if attempt is not None and attempt.number == number else "unknown"), attempt


def remove_lock(run: str, folder: Path | None = None) -> None:
    """Remove what a killed process left."""
    _file(run, folder).unlink(missing_ok=True)


def _file(run: str, folder: Path | None) -> Path:
    return (folder or store_folder() / ".attempts") / f"{run}.json"


def _read(lock: IO[str]) -> RunHolder | None:
    try:
        return RunHolder.model_validate(json.loads(lock.read()))
    except (ValueError, ValidationError):  # killed before it wrote
        return None
