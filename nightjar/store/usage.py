"""Which artifacts live runs use: each run lists them in a file of its own, locked as long as the run lives.

A run notes a key before it looks it up. Noting holds the gc lock shared; gc holds it exclusively from reading these
files to removing a record. So either gc sees the note and keeps the artifact, or the run finds no record and makes the
artifact again. gc never removes what a run has found.
"""

import contextlib
import errno
import logging
import os
import secrets
import socket
import threading
from pathlib import Path

from nightjar.files import storage_errors
from nightjar.locks import acquire, is_still, locked, try_lock
from nightjar.store.artifact import Store

log = logging.getLogger(__name__)

RUNNING = ".running"
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Usage:
    """The artifacts that one run has looked up or made; gc keeps them until `close`, or until the process ends."""

    def __init__(self, store: Store, outer: "Usage | None" = None) -> None:
        """outer: the usage of a longer run, such as a night, that also notes every key and keeps it until its end."""
        self._store, self._noted, self._outer = store, set[tuple[str, str]](), outer
        self._noting, self._path = threading.Lock(), Path()
        self._handle: int | None = None

    def note(self, stage: str, key: str) -> None:
        """Protect a key from gc, whether it exists or not; call this before looking it up.

        Raises StoreBroken if the disk is full. A store that this process cannot write is used without a note.
        """
        if self._outer is not None:
            self._outer.note(stage, key)
        with self._noting:
            if (stage, key) not in self._noted:
                try:
                    self._write(f"\n{stage}/{key}\n")  # the first newline ends a line that a full disk cut short
                except OSError as error:
                    if error.errno not in UNWRITABLE:
                        with storage_errors():
                            raise
                    log.debug("gc cannot see what this run uses: %s", error)
                else:
                    self._noted.add((stage, key))
        with contextlib.suppress(OSError):
            os.utime(self._store.checked_path(stage, key))

    def close(self) -> None:
        """Stop protecting the noted keys."""
        with self._noting:
            if self._handle is not None:
                self._path.unlink(missing_ok=True)
                os.close(self._handle)
            self._handle, self._noted = None, set()

    def _write(self, text: str) -> None:
        """Append to the run's file, under the gc lock: gc must not see a new file before it is locked."""
        with gc_lock(self._store):
            if self._handle is None:
                name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
                self._path = self._store.root / RUNNING / name
                self._handle = acquire(self._path)
            assert self._handle is not None
            line = text.encode()
            if os.write(self._handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def gc_lock(store: Store, exclusive: bool = False) -> contextlib.AbstractContextManager[int]:
    """Hold the store's gc lock: shared by runs that note what they use, exclusive to remove artifacts."""
    return locked(store.root / ".gate", shared=not exclusive)


def in_use(store: Store, clear: bool = False) -> set[tuple[str, str]]:
    """Return stage and key of every artifact that a live run uses.

    clear: remove the notes of dead runs; the caller holds the gc lock.
    """
    found = set[tuple[str, str]]()
    for path in (store.root / RUNNING).glob("*"):
        with contextlib.suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:  # else it has ended
            if not try_lock(file.fileno()):
                lines = file.read().split("\n")[:-1]
                found |= {(stage, key) for stage, _, key in (line.partition("/") for line in lines if line)}
            elif clear and is_still(file.fileno(), path):
                path.unlink()
    return found
