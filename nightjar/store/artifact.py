"""Artifacts: folders named by the content of what made them, in a store that survives kills.

A store is `artifacts/<stage>/<key>/{files, record.json}`. The record is written last: a folder without one does not
exist. Artifacts and records contain no absolute paths, so a store may be moved or shared.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError

from nightjar.files import digest, digest_file, mtime_ns, read_json_object, storage_errors, sync, write_atomic
from nightjar.locks import acquire, locked
from nightjar.store.file_memo import file_stamp

RECORD = "record.json"
DAMAGED = f"{RECORD} is damaged"
NOT_STORED = "not in the store"
VIEWS = frozenset({"dataset.txt", "toolchain.txt"})  # depend on the store's place or on time: not part of the content


class Artifact(BaseModel, frozen=True):
    """A stage's result: its key (what made it) and its sha256 (what it is)."""

    kind: str
    key: str
    sha256: str
    meta: dict[str, str] = {}


class Source(BaseModel, frozen=True):
    """A file or folder from outside the store; only its content enters a key."""

    path: Path
    sha256: str


class Record(BaseModel, frozen=True):
    """What a finished artifact contains, what made it and how long that took."""

    stage: str
    key: str
    parts: dict[str, str]  # everything the key was made of, one line each, to explain a miss
    files: dict[str, tuple[int, str]]  # relative path -> (bytes, sha256)
    sha256: str
    meta: dict[str, str]
    seconds: float
    finished: str
    model: str = ""  # that it was made for, to explain a miss by what is like it

    @property
    def artifact(self) -> Artifact:
        return Artifact(kind=self.stage, key=self.key, sha256=self.sha256, meta=self.meta)

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(size for size, _ in self.files.values())

    @property
    def file_digests(self) -> set[str]:
        """The sha256 of all its files."""
        return {sha256 for _, sha256 in self.files.values()}


def parse_record(data: bytes, stage: str, key: str) -> Record | None:
    """Parse a record; return None if it is damaged, of another artifact, or names files outside its folder."""
    try:
        record = Record.model_validate_json(data)
    except (ValidationError, UnicodeDecodeError):
        return None
    names = [PurePosixPath(name) for name in record.files]
    inside = all(not name.is_absolute() and name.parts and ".." not in name.parts for name in names)
    hashes = all(len(sha256) == 64 and sha256.isalnum() for sha256 in record.file_digests)
    consistent = record.sha256 == content_digest(record.files)
    return record if inside and hashes and consistent and (record.stage, record.key) == (stage, key) else None


def content_digest(files: dict[str, tuple[int, str]]) -> str:
    """Return the sha256 of an artifact's content from its files' names and digests."""
    return digest({name: sha256 for name, (_, sha256) in files.items()})


def content_files(folder: Path) -> list[Path]:
    """List the files that are a folder's content, sorted: all except its record and its views."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in VIEWS and path != folder / RECORD
    )


class Store:
    """Artifacts on disk: find, lock, publish, verify."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def folder(self, stage: str, key: str) -> Path:
        """Return the folder of a key, whether it exists or not."""
        return self.root / stage / key

    def path(self, artifact: Artifact) -> Path:
        """Return the folder with an artifact's files."""
        return self.folder(artifact.kind, artifact.key)

    def find(self, stage: str, key: str, has_lock: bool = False) -> tuple[Record | None, str]:
        """Return the verified record of a key, or None and the reason why it cannot be used.

        has_lock: the caller holds the key's lock. A store that fetches from elsewhere needs to know.
        """
        record, why = self.read_record(stage, key)
        if record is None:
            return None, why
        checked_path, stamps = self.checked_path(stage, key), dict[str, list[int]]()
        checked = read_json_object(checked_path)
        if damage := next(self.damages(record, stamps, checked), ""):
            return None, damage
        if stamps != checked:
            with contextlib.suppress(OSError):  # only saves time in the next run: a full disk must not stop a reader
                write_atomic(checked_path, json.dumps(stamps))
        return record, ""

    def read_record(self, stage: str, key: str) -> tuple[Record | None, str]:
        """Return the record of a key without verifying its files, or None and the reason why it cannot be used."""
        folder = self.folder(stage, key)
        try:
            record = parse_record((folder / RECORD).read_bytes(), stage, key)
        except FileNotFoundError:
            return None, f"{RECORD} is missing" if folder.exists() else NOT_STORED
        return record, "" if record is not None else DAMAGED

    def damages(self, record: Record, stamps: dict[str, list[int]], checked: Mapping[str, Any] = {}) -> Iterator[str]:
        """Yield how an artifact's files differ from their record, and collect their stamps.

        A file whose stamp is as at its last full check (`checked`) is not read again. ctime cannot be set back, so a
        flipped byte is always detected.
        """
        for name, (size, sha256) in record.files.items():
            path = self.folder(record.stage, record.key) / name
            try:
                stamps[name] = file_stamp(path)
                if stamps[name][0] != size:
                    yield f"{name} has the wrong size"
                elif checked.get(name) != stamps[name] and digest_file(path) != sha256:
                    yield f"{name} was altered"
            except FileNotFoundError:
                yield f"{name} was deleted"

    def checked_path(self, stage: str, key: str) -> Path:
        """Return the file that lists an artifact's checked files; its mtime is when a run last used the artifact."""
        return self.root / ".verified" / f"{stage}-{key}.json"

    def refs(self) -> Iterator[tuple[str, str]]:
        """Yield stage and key of every folder in the store, complete or not, sorted."""
        for folder in sorted(self.root.glob("[!.]*/*/")):
            yield folder.parent.name, folder.name

    def records(self, stage: str) -> Iterator[Record]:
        """Yield the readable records of a stage, newest first, without verifying files."""
        dated = [(mtime_ns(path), path) for path in (self.root / stage).glob(f"*/{RECORD}")]
        for _, path in sorted(dated, reverse=True):
            with contextlib.suppress(ValidationError, OSError):
                yield Record.model_validate_json(path.read_bytes())

    def work(self, stage: str, key: str) -> Path:
        """Return the private folder of a stage's unfinished run; it survives a kill."""
        return self.root / ".work" / f"{stage}-{key}"

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the exclusive right to make a key; the lock ends with its process."""
        with contextlib.ExitStack() as held:
            with storage_errors():
                held.enter_context(locked(self._lock_file(stage, key), on_wait=on_wait))
            yield

    @contextlib.contextmanager
    def try_lock_key(self, stage: str, key: str) -> Iterator[bool]:
        """Hold a key's lock if it is free; yield whether it is held."""
        handle = acquire(self._lock_file(stage, key), wait=False)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def _lock_file(self, stage: str, key: str) -> Path:
        return self.root / ".locks" / f"{stage}-{key}.lock"

    def publish(
        self,
        stage: str,
        key: str,
        out: Path,
        parts: dict[str, str],
        meta: dict[str, str],
        seconds: float,
        model: str = "",
    ) -> Record:
        """Move a finished folder to its place and write its record last.

        Raises StoreBroken if the disk is full or not writable; the store then keeps its old state.
        """
        with storage_errors():
            files = {}
            for path in content_files(out):
                sync(path)
                files[path.relative_to(out).as_posix()] = (path.stat().st_size, digest_file(path))
            record = Record(
                stage=stage,
                key=key,
                parts=parts,
                files=files,
                sha256=content_digest(files),
                meta=meta,
                seconds=round(seconds, 3),
                finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                model=model,
            )
        self.place(out, record)
        return record

    def place(self, out: Path, record: Record) -> None:
        """Move a complete folder to its place and write its record last; the caller holds the key's lock."""
        with storage_errors():
            folder = self.folder(record.stage, record.key)
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():  # damaged: remove the record first, so that no reader trusts the rest
                (folder / RECORD).unlink(missing_ok=True)
                shutil.rmtree(folder)
            out.rename(folder)
            write_atomic(folder / RECORD, record.model_dump_json(indent=1))
