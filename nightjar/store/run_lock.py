"""Which process executes a deployed run: a lock per run, which the kernel releases when the process ends.

A killed worker leaves its runs `Running` on the server forever. The lock distinguishes such an orphan from a run that
is only silent, at once and without a clock. Where the lock file cannot be seen (another machine, another store), only
Prefect's heartbeat is left.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from nightjar.files import storage_errors
from nightjar.locks import locked, try_lock
from nightjar.paths import store_folder


class RunHolder(BaseModel, frozen=True):
    """The process that executes a run; `number` counts the run's attempts."""

    host: str
    pid: int
    number: int


@contextlib.contextmanager
def hold_run(run: str, number: Callable[[], int]) -> Iterator[None]:
    """Hold a run's lock while this process executes it; waits for another holder.

    number: called once the lock is held, returns the number of this attempt. Raises StoreBroken if the folder is not
    writable.
    """
    with contextlib.ExitStack() as held:
        with storage_errors():
            lock = held.enter_context(locked(_file(run)))
        held.callback(remove_lock, run)
        this = RunHolder(host=socket.gethostname(), pid=os.getpid(), number=number())
        with storage_errors():
            os.ftruncate(lock, 0)
            os.write(lock, this.model_dump_json().encode())
        yield


def run_status(run: str, number: int) -> tuple[Literal["held", "gone", "unknown"], RunHolder | None]:
    """Return whether a process executes this attempt at a run, did and is gone, or cannot be seen from here."""
    found = None
    try:
        with _file(run).open() as lock, contextlib.suppress(ValidationError):  # killed before it wrote
            held = not try_lock(lock.fileno(), fcntl.LOCK_SH)
            found = RunHolder.model_validate_json(lock.read())
    except FileNotFoundError:
        return "unknown", None
    if held:
        return "held", found
    return ("gone" if found is not None and found.number == number else "unknown"), found


def remove_lock(run: str) -> None:
    """Remove the lock file of a killed process."""
    _file(run).unlink(missing_ok=True)


def _file(run: str) -> Path:
    return store_folder() / ".attempts" / f"{run}.json"
