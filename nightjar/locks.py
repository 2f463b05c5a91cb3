"""Locks between processes of this machine: flock on a file; a lock ends with its process."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def acquire(
    path: Path, *, shared: bool = False, wait: bool = True, on_wait: Callable[[], None] | None = None
) -> int | None:
    """Lock a file, made where it is absent, and return its handle; closing the handle ends the lock.

    Returns None where another process has the lock and `wait` is false; `on_wait` is called once before a wait.
    A file that another process or gc removed between opening and locking is opened again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(handle, kind):
                if not wait:
                    os.close(handle)
                    return None
                if on_wait is not None:
                    on_wait()
                fcntl.flock(handle, kind)
        except BaseException:  # interrupted while it waits
            os.close(handle)
            raise
        if is_still(handle, path):
            return handle
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, on_wait: Callable[[], None] | None = None) -> Iterator[int]:
    """Lock a file for as long as the block lasts and give its handle; waits for another process."""
    handle = acquire(path, shared=shared, on_wait=on_wait)
    assert handle is not None
    try:
        yield handle
    finally:
        os.close(handle)


def try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file unless another process has the lock; return whether it is locked now."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
