"""Garbage collection and verification of a store folder.

gc removes the artifacts for which a survey (nightjar/nightly/retention.py) found no reason to keep them. Runs may go on
meanwhile: an artifact used after the survey stays. A record is removed before its files, so that a kill leaves no
artifact that looks complete.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from nightjar.files import mtime_ns
from nightjar.progress import tick
from nightjar.store.artifact import DAMAGED, RECORD, Record, Store, content_files
from nightjar.store.usage import gc_lock, in_use

DAY_S = 86400.0
WORK_S = DAY_S  # unfinished work of a dead run: somebody may continue it the next morning
MEMO_S = 30 * DAY_S  # memos of code that was edited since

Ref = tuple[str, str]  # stage and key


class Entry(BaseModel, frozen=True):
    """One artifact: its size, when it was made and last used (seconds since 1970), and why it is kept."""

    stage: str
    key: str
    bytes: int
    made_s: float
    used_s: float
    why: tuple[str, ...]

    @property
    def ref(self) -> Ref:
        return self.stage, self.key


class Collected(BaseModel, frozen=True):
    """What gc removed, or would remove, and what it left."""

    removed: tuple[Entry, ...]
    kept: int
    kept_bytes: int
    loose: tuple[str, ...]  # of no artifact: unfinished work of dead runs, files that no record names
    freed_bytes: int
    dry_run: bool


class Damage(BaseModel, frozen=True):
    """One difference between an artifact and its record."""

    stage: str
    key: str
    what: str


class ArtifactInfo(NamedTuple):
    """An artifact's record (None if missing or damaged), size and times."""

    record: Record | None
    bytes: int
    made_s: float
    used_s: float


def collect(store: Store, entries: Sequence[Entry], *, dry_run: bool = False) -> Collected:
    """Remove the surveyed artifacts that have no reason to be kept, and what dead runs left behind.

    Unfinished work is removed a day after its run died; locks and memos go with their artifacts.
    """
    removed = tuple(entry for entry in entries if not entry.why and (dry_run or _remove(store, entry)))
    work = list(_sweep_work(store, dry_run))
    if not dry_run:
        _sweep_traces(store)
    freed_bytes = sum(entry.bytes for entry in removed) + sum(size for _, size in work)
    return summarize(entries, removed, [name for name, _ in work], freed_bytes, dry_run)


def summarize(
    entries: Sequence[Entry], removed: Sequence[Entry], loose: Sequence[str], freed_bytes: int, dry_run: bool
) -> Collected:
    """Return the result of a gc."""
    gone = {entry.ref for entry in removed}
    kept = [entry for entry in entries if entry.ref not in gone]
    return Collected(
        removed=tuple(removed),
        kept=len(kept),
        kept_bytes=sum(entry.bytes for entry in kept),
        loose=tuple(loose),
        freed_bytes=freed_bytes,
        dry_run=dry_run,
    )


def verify(store: Store) -> tuple[int, list[Damage]]:
    """Read every byte of a store; return the number of artifacts and what is damaged or incomplete.

    Uses no memo and deletes nothing: a run that needs a damaged artifact makes it again.
    """
    refs, found = list(store.refs()), list[Damage]()
    for number, (stage, key) in enumerate(refs, 1):
        if damages := list(_damages(store, stage, key)):
            with store.try_lock_key(stage, key) as ours:  # otherwise a run is making it
                if ours and store.folder(stage, key).exists():
                    found += [Damage(stage=stage, key=key, what=what) for what in damages]
        tick(number, len(refs))
    return len(refs), found


def _damages(store: Store, stage: str, key: str) -> Iterator[str]:
    record, why = store.read_record(stage, key)
    if record is None:
        yield why if why == DAMAGED else f"incomplete: {why}"
        return
    yield from store.damages(record, {})
    folder = store.folder(stage, key)
    names = (path.relative_to(folder).as_posix() for path in content_files(folder))
    yield from (f"{name} is not in {RECORD}" for name in names if name not in record.files)


def inspect_artifact(store: Store, ref: Ref) -> ArtifactInfo:
    """Read an artifact's record, size and times."""
    folder = store.folder(*ref)
    made_s = (mtime_ns(folder / RECORD) or mtime_ns(folder)) / 1e9
    used_s = max(made_s, mtime_ns(store.checked_path(*ref)) / 1e9)
    record, _ = store.read_record(*ref)
    return ArtifactInfo(record, record.bytes if record is not None else _folder_bytes(folder), made_s, used_s)


def _remove(store: Store, entry: Entry) -> bool:
    """Remove an artifact unless a run makes it, has looked it up, or used it since the survey."""
    folder = store.folder(*entry.ref)
    with store.try_lock_key(*entry.ref) as ours:
        if not ours:
            return False
        with gc_lock(store, exclusive=True):
            used = inspect_artifact(store, entry.ref).used_s > entry.used_s
            if used or entry.ref in in_use(store, clear=True):
                return False
            (folder / RECORD).unlink(missing_ok=True)  # from here on no run finds it
        shutil.rmtree(folder)
        store.checked_path(*entry.ref).unlink(missing_ok=True)
    return True


def _sweep_work(store: Store, dry_run: bool) -> Iterator[tuple[str, int]]:
    """Remove the unfinished work of runs that died at least a day ago; yield its name and bytes."""
    before_ns = (time.time() - WORK_S) * 1e9
    for folder in sorted((store.root / ".work").glob("*")):
        stage, _, key = folder.name.rpartition("-")
        with store.try_lock_key(stage, key) as ours:
            newest = max(mtime_ns(path) for path in (folder, *_files(folder)))
            if not ours or not folder.exists() or newest > before_ns:
                continue
            size = _folder_bytes(folder)
            if not dry_run:
                shutil.rmtree(folder)
        yield folder.name, size


def _sweep_traces(store: Store) -> None:
    """Remove locks and memos of removed artifacts, notes of dead runs, and temporary files of killed writers."""
    with gc_lock(store, exclusive=True):
        in_use(store, clear=True)
    for path in (store.root / ".locks").glob("*.lock"):
        stage, _, key = path.stem.rpartition("-")
        if not store.folder(stage, key).exists() and not store.work(stage, key).exists():
            with store.try_lock_key(stage, key) as ours:
                if ours:
                    path.unlink(missing_ok=True)
    now_ns = time.time_ns()
    for path in (path for name in (".verified", ".sent", ".memo") for path in (store.root / name).glob("*")):
        age_s = (now_ns - mtime_ns(path)) / 1e9
        stage, _, key = path.stem.rpartition("-")
        if path.name.startswith("."):  # temporary
            unneeded = age_s > DAY_S
        elif path.parent.name == ".memo":
            unneeded = age_s > MEMO_S
        else:
            unneeded = not store.folder(stage, key).exists()
        if unneeded:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):  # ignores folders that vanish meanwhile
        yield from (Path(parent) / name for name in names)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def age(seconds: float) -> str:
    """Format a duration in the largest unit of which it has at least two."""
    for unit, length in (("days", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
