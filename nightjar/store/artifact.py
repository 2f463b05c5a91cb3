"""Artifacts: folders named by the content of what made them, in a store that survives kills.

A store is `artifacts/<stage>/<key>/{files, record.json}`. The record is written last: a folder without one does not
exist. Nothing in an artifact or a record is an absolute path, so a store may be moved or shared.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nightjar.files import digest, digest_file, mtime_ns, storage_errors, write_atomic
from nightjar.locks import acquire, locked

RECORD = "record.json"
VIEWS = frozenset(
    {"dataset.txt", "toolchain.txt"}
)  # of where the store lies and of when it was made: no part of the content


class Artifact(BaseModel, frozen=True):
    """Name a stage's result by its key (what made it) and its sha256 (what it is)."""

    kind: str
    key: str
    sha256: str
    meta: dict[str, str] = {}


class Source(BaseModel, frozen=True):
    """Name a file or folder from outside the store; only its content enters a key."""

    path: Path
    sha256: str


class Record(BaseModel, frozen=True):
    """Say what a finished artifact holds, what made it and how long that took."""

    stage: str
    key: str
    parts: dict[str, str]  # everything the key was made of, one line each, to explain a miss
    files: dict[str, tuple[int, str]]  # relative path -> (bytes, sha256)
    sha256: str
    meta: dict[str, str]
    seconds: float
    finished: str

    @property
    def artifact(self) -> Artifact:
        return Artifact(kind=self.stage, key=self.key, sha256=self.sha256, meta=self.meta)


def content_files(folder: Path) -> list[Path]:
    """List the files that are a folder's content: all but its record and its views, sorted."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in VIEWS and path != folder / RECORD
    )


class Store:
    """Keep artifacts on disk: find, lock, publish, verify."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def path(self, artifact: Artifact) -> Path:
        """Return where an artifact's files lie in this store."""
        return self.root / artifact.kind / artifact.key

    def find(self, stage: str, key: str, held: bool = False) -> tuple[Record | None, str]:
        """Return the verified record of a key, or None and the reason it cannot be used.

        held: the caller holds the key's lock, which a store that fetches from elsewhere needs to know.
        """
        folder = self.root / stage / key
        if not folder.exists():
            return None, "never made"
        try:
            record = Record.model_validate_json((folder / RECORD).read_bytes())
        except FileNotFoundError:
            return None, "its record is missing"
        except (ValidationError, UnicodeDecodeError):
            return None, "its record is damaged"
        damage = self._damage(folder, record)
        return (None, damage) if damage else (record, "")

    def _damage(self, folder: Path, record: Record) -> str:
        """Say what differs between the files and their record; empty when nothing does.

        A file whose size, mtime, ctime and inode are those of its last full check is not read again: ctime
        cannot be set back, so a flipped byte is always seen.
        """
        if record.key != folder.name:
            return "its record is damaged"
        memo_path = self.memo(record.stage, record.key)
        memo = _read_json(memo_path)
        seen: dict[str, list[int]] = {}
        for name, (size, sha256) in record.files.items():
            path = folder / name
            try:
                stat = path.stat()
            except FileNotFoundError:
                return f"{name} was deleted"
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if stat.st_size != size:
                return f"{name} was truncated or grew"
            if memo.get(name) != stamp and (altered := _altered(path, sha256)):
                return f"{name} was {altered}"
            seen[name] = stamp
        if seen != memo:
            with contextlib.suppress(OSError):  # a memo saves time next time; a full disk must not stop a reader
                write_atomic(memo_path, json.dumps(seen))
        return ""

    def memo(self, stage: str, key: str) -> Path:
        """Return where it is noted which of an artifact's files were checked; touched when a run uses it."""
        return self.root / ".verified" / f"{stage}-{key}.json"

    def refs(self) -> Iterator[tuple[str, str]]:
        """Yield stage and key of every folder there is, whole or not, in order."""
        for folder in sorted(self.root.glob("[!.]*/*/")):
            yield folder.parent.name, folder.name

    def records(self, stage: str) -> Iterator[Record]:
        """Yield the readable records of a stage, newest first, without verifying files."""
        found = (self.root / stage).glob(f"*/{RECORD}")
        dated = [(mtime_ns(path), path) for path in found]
        for _, path in sorted(dated, reverse=True):
            with contextlib.suppress(ValidationError, OSError):
                yield Record.model_validate_json(path.read_bytes())

    def work(self, stage: str, key: str) -> Path:
        """Return the private folder of a stage's unfinished run; it survives a kill."""
        return self.root / ".work" / f"{stage}-{key}"

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the only right to make a key; the lock dies with its process."""
        with contextlib.ExitStack() as held:
            with storage_errors():
                held.enter_context(locked(self._lock_file(stage, key), on_wait=on_wait))
            yield

    @contextlib.contextmanager
    def try_lock_key(self, stage: str, key: str) -> Iterator[bool]:
        """Hold a key's lock if nobody else does; yield whether we do."""
        handle = acquire(self._lock_file(stage, key), wait=False)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def _lock_file(self, stage: str, key: str) -> Path:
        return self.root / ".locks" / f"{stage}-{key}.lock"

    def publish(
        self, stage: str, key: str, out: Path, parts: dict[str, str], meta: dict[str, str], seconds: float
    ) -> Record:
        """Move a finished folder to its place and write its record last.

        Raises StoreBroken when the disk is full or cannot be written; the store then still holds its old state.
        """
        with storage_errors():
            files = {}
            for path in content_files(out):
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())
                files[path.relative_to(out).as_posix()] = (path.stat().st_size, sha256)
            record = Record(
                stage=stage,
                key=key,
                parts=parts,
                files=files,
                sha256=digest({name: sha256 for name, (_, sha256) in files.items()}),
                meta=meta,
                seconds=round(seconds, 3),
                finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            self.place(out, record)
        return record

    def place(self, out: Path, record: Record) -> None:
        """Move a whole folder to its place and write its record last; the key's lock is the caller's."""
        with storage_errors():
            folder = self.root / record.stage / record.key
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():  # damaged: the record goes first, so that no reader takes the rest for whole
                (folder / RECORD).unlink(missing_ok=True)
                shutil.rmtree(folder)
            out.rename(folder)
            write_atomic(folder / RECORD, record.model_dump_json(indent=1))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _altered(path: Path, sha256: str) -> str:
    """Say what became of a file that had this sha256; empty when nothing did."""
    try:
        return "" if digest_file(path) == sha256 else "altered"
    except FileNotFoundError:
        return "deleted"
