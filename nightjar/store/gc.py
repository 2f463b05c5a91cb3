"""What a store keeps and why; the rest goes, a record before its files, so that a kill leaves no half artifact.

Kept are: the verdict and report of every night in the history; what the last nights, the best night of each cell and
the latest reports were made from, step by step back to the export; what a live run has looked up; and what was made or
used lately. An input is known by its content, so of two artifacts of one stage and the same bytes the one that was
used last is kept: it is the one that the next run finds.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from nightjar.files import digest_file, mtime_ns
from nightjar.progress import tick
from nightjar.store.artifact import RECORD, Record, Store, content_files
from nightjar.store.usage import gc_lock, in_use
from nightjar.text import DAY_S

WORK_S = DAY_S  # a dead run's unfinished work: what it had is not lost before somebody is there in the morning
MEMO_S = 30 * DAY_S  # memos of code that was edited since

Ref = tuple[str, str]  # stage and key


class Entry(BaseModel, frozen=True):
    """One artifact: what it takes, when it was made and last used (seconds since 1970), and why it is kept."""

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
    """Say what a gc removed, or would have, and what it left."""

    removed: tuple[Entry, ...]
    kept: int
    kept_bytes: int
    loose: tuple[str, ...]  # what belongs to no artifact: unfinished work of dead runs, files that no record names
    freed_bytes: int
    dry_run: bool


class Damage(BaseModel, frozen=True):
    """One thing that is not as its record says."""

    stage: str
    key: str
    what: str


class ArtifactInfo(NamedTuple):
    """What a look at an artifact tells."""

    record: Record | None  # None: missing or damaged
    bytes: int
    made_s: float
    used_s: float


def collect(store: Store, entries: Sequence[Entry], *, dry_run: bool = False) -> Collected:
    """Remove the artifacts that have no reason to be kept, and what dead runs left behind.

    entries: a survey of the store (nightjar/nightly/retention.py). Runs may go on meanwhile: an artifact that was used
    after the survey stays. Unfinished work goes a day after its run died; locks and memos go with their artifacts.
    """
    removed = tuple(entry for entry in entries if not entry.why and (dry_run or _remove(store, entry)))
    gone = {entry.ref for entry in removed}
    kept = [entry for entry in entries if entry.ref not in gone]
    loose = list(_sweep_work(store, dry_run))
    if not dry_run:
        _sweep_traces(store)
    return Collected(
        removed=removed,
        kept=len(kept),
        kept_bytes=sum(entry.bytes for entry in kept),
        loose=tuple(name for name, _ in loose),
        freed_bytes=sum(entry.bytes for entry in removed) + sum(size for _, size in loose),
        dry_run=dry_run,
    )


def verify(store: Store) -> tuple[int, list[Damage]]:
    """Read every byte of a store again; return how many artifacts there are and what is damaged or half-written.

    Nothing is taken from memos, and nothing is deleted: a run that needs a damaged artifact makes it again.
    """
    refs, found = list(store.refs()), list[Damage]()
    for number, (stage, key) in enumerate(refs, 1):
        damages = list(_damages(store.root / stage / key))
        if damages:
            with store.try_lock_key(stage, key) as ours:  # else it is being made
                if ours and (store.root / stage / key).exists():
                    found += [Damage(stage=stage, key=key, what=what) for what in damages]
        tick(number, len(refs))
    return len(refs), found


def _damages(folder: Path) -> Iterator[str]:
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        yield "half-written: its record is missing"
        return
    except (ValidationError, UnicodeDecodeError):
        yield "its record is damaged"
        return
    if (record.stage, record.key) != (folder.parent.name, folder.name):
        yield "its record is of another artifact"
    for name, (size, sha256) in record.files.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                yield f"{name} was truncated or grew"
            elif digest_file(path) != sha256:
                yield f"{name} was altered"
        except FileNotFoundError:
            yield f"{name} was deleted"
    for path in content_files(folder):
        if (name := path.relative_to(folder).as_posix()) not in record.files:
            yield f"{name} is not in its record"


def inspect_artifact(store: Store, ref: Ref) -> ArtifactInfo:
    """Look at one artifact: its record, size and times."""
    folder = store.root.joinpath(*ref)
    made_s = (mtime_ns(folder / RECORD) or mtime_ns(folder)) / 1e9
    used_s = max(made_s, mtime_ns(store.memo(*ref)) / 1e9)
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError, UnicodeDecodeError):
        return ArtifactInfo(None, _bytes(folder), made_s, used_s)
    return ArtifactInfo(record, sum(size for size, _ in record.files.values()), made_s, used_s)


def _remove(store: Store, entry: Entry) -> bool:
    """Remove an artifact unless a run is making it, has looked it up, or used it since the survey."""
    folder = store.root.joinpath(*entry.ref)
    with store.try_lock_key(*entry.ref) as ours:
        if not ours:
            return False
        with gc_lock(store, alone=True):
            used = inspect_artifact(store, entry.ref).used_s > entry.used_s
            if used or entry.ref in in_use(store, clear=True):
                return False
            (folder / RECORD).unlink(missing_ok=True)  # from here on nobody finds it
        shutil.rmtree(folder)
        store.memo(*entry.ref).unlink(missing_ok=True)
    return True


def _sweep_work(store: Store, dry_run: bool) -> Iterator[tuple[str, int]]:
    """Remove what runs left unfinished that died a day ago; yield its name and bytes."""
    before_ns = (time.time() - WORK_S) * 1e9
    for folder in sorted((store.root / ".work").glob("*")):
        stage, _, key = folder.name.rpartition("-")
        with store.try_lock_key(stage, key) as ours:
            newest = max(mtime_ns(path) for path in (folder, *_files(folder)))
            if not ours or not folder.exists() or newest > before_ns:  # its run ended since we listed it
                continue
            size = _bytes(folder)
            if not dry_run:
                shutil.rmtree(folder)
        yield folder.name, size


def _sweep_traces(store: Store) -> None:
    """Remove locks and memos of what is gone, notes of dead runs, and files that a kill left beside their place."""
    with gc_lock(store, alone=True):
        in_use(store, clear=True)
    for path in (store.root / ".locks").glob("*.lock"):
        stage, _, key = path.stem.rpartition("-")
        if not (store.root / stage / key).exists() and not store.work(stage, key).exists():
            with store.try_lock_key(stage, key) as ours:
                if ours:
                    path.unlink(missing_ok=True)
    now_ns = time.time_ns()
    notes = (".verified", ".sent")
    for path in [path for name in (*notes, ".memo") for path in (store.root / name).glob("*")]:
        stage, _, key = path.stem.rpartition("-")
        half_written = path.name.startswith(".") and now_ns - mtime_ns(path) > DAY_S * 1e9
        forgotten = path.parent.name in notes and path.name[0] != "." and not (store.root / stage / key).exists()
        old = path.parent.name == ".memo" and now_ns - mtime_ns(path) > MEMO_S * 1e9
        if half_written or forgotten or old:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):  # passes over what goes meanwhile
        yield from (Path(parent) / name for name in names)


def _bytes(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
