"""What a store keeps and why; the rest goes, a record before its files, so that a kill leaves no half artifact.

Kept are: the verdict and report of every night in the history; what the last nights, the best night of each cell and
the latest reports were made from, step by step back to the export; what a live run has looked up; and what was made or
used lately. An input is known by its content, so of two artifacts of one stage and the same bytes the one that was
used last is kept: it is the one that the next run finds.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from nightjar.artifact import RECORD, Record, Store, content_files, digest_file, mtime_ns
from nightjar.history import History
from nightjar.pages import reports_folder
from nightjar.progress import tick
from nightjar.regression import best_night
from nightjar.usage import gate, in_use

DAY_S = 86400.0
KEEP_NIGHTS = 7
OLDER_THAN_S = 2 * DAY_S  # a night that failed half-way is asked for again the next day
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


class Known(NamedTuple):
    """What a look at an artifact tells."""

    record: Record | None  # None: missing or damaged
    bytes: int
    made_s: float
    used_s: float


def survey(
    store: Store,
    history: History,
    *,
    keep_nights: int = KEEP_NIGHTS,
    older_than_s: float = OLDER_THAN_S,
    reports: Path | None = None,
) -> list[Entry]:
    """List every artifact of a store with the reasons to keep it, none where nothing needs it; changes nothing.

    Raises StoreBroken when the history cannot be read: what it needs is not known then.
    """
    known = {ref: _known(store, ref) for ref in store.refs()}
    return explain(known, in_use(store), history, keep_nights, older_than_s, reports)


def explain(
    known: Mapping[Ref, Known],
    used: Iterable[Ref],
    history: History,
    keep_nights: int,
    older_than_s: float,
    reports: Path | None,
) -> list[Entry]:
    """Find the reasons to keep artifacts, wherever they lie; used: those of live runs."""
    by_content = _by_content(known)
    reasons: dict[Ref, list[str]] = {ref: [] for ref in known}

    def keep(refs: Iterable[Ref], why: str) -> None:
        for ref in refs:
            if ref in reasons and why not in reasons[ref]:
                reasons[ref].append(why)

    keep(used, "a run uses it")
    cells = history.cells().to_dict("records")
    keep([ref for cell in cells for ref in _scored(cell)], "a score in the history")
    last = set(history.nights()["night"].tolist()[-keep_nights:] if keep_nights else ())
    of_last = [ref for cell in cells if cell["night"] in last for ref in _scored(cell)]
    keep(_lineage(of_last, known, by_content), f"made the last {keep_nights} nights")
    keep(_lineage(_best(history, cells, last), known, by_content), "made a cell's best night")
    for name, refs in _reported(reports or reports_folder(), known):
        keep(_lineage(refs, known, by_content), f"made reports/{name}")
    since = time.time() - older_than_s
    recent = [ref for ref, each in known.items() if each.used_s > since]
    keep(recent, f"used in the last {age(older_than_s)}")
    return [
        Entry(stage=ref[0], key=ref[1], bytes=each.bytes, made_s=each.made_s, used_s=each.used_s, why=tuple(why))
        for (ref, each), why in zip(known.items(), reasons.values(), strict=True)
    ]


def collect(
    store: Store,
    history: History,
    *,
    keep_nights: int = KEEP_NIGHTS,
    older_than_s: float = OLDER_THAN_S,
    reports: Path | None = None,
    dry_run: bool = False,
) -> Collected:
    """Remove what nothing needs, unfinished work of runs that died a day ago, and locks and memos of what is gone.

    keep_nights: how many of the last nights keep all they were made from; older_than_s: what was used since then stays
    in any case. Runs may go on meanwhile. Raises StoreBroken when the history cannot be read.
    """
    entries = survey(store, history, keep_nights=keep_nights, older_than_s=older_than_s, reports=reports)
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
            with store.lock_now(stage, key) as ours:  # else it is being made
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


def _known(store: Store, ref: Ref) -> Known:
    folder = store.root.joinpath(*ref)
    made_s = (mtime_ns(folder / RECORD) or mtime_ns(folder)) / 1e9
    used_s = max(made_s, mtime_ns(store.memo(*ref)) / 1e9)
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError, UnicodeDecodeError):
        return Known(None, _bytes(folder), made_s, used_s)
    return Known(record, sum(size for size, _ in record.files.values()), made_s, used_s)


def _by_content(known: Mapping[Ref, Known]) -> dict[str, list[Ref]]:
    """Index artifacts by content: of each stage the one that was used last."""
    found: dict[str, dict[str, Ref]] = {}
    for ref, each in sorted(known.items(), key=lambda item: item[1].used_s):
        if each.record is not None:
            found.setdefault(each.record.sha256, {})[ref[0]] = ref
    return {sha256: list(refs.values()) for sha256, refs in found.items()}


def _lineage(refs: Iterable[Ref], known: Mapping[Ref, Known], by_content: dict[str, list[Ref]]) -> set[Ref]:
    """Return artifacts with everything in the store that they were made from."""
    todo, seen = list(refs), set[Ref]()
    while todo:
        ref = todo.pop()
        each = known.get(ref)
        if ref in seen or each is None:
            continue
        seen.add(ref)
        parts = each.record.parts if each.record is not None else {}
        for part, content in parts.items():
            if part.startswith("input "):
                todo += by_content.get(content, ())
    return seen


def _scored(cell: dict[Any, Any]) -> list[Ref]:
    return [(stage, str(cell[stage])) for stage in ("judge", "report") if cell[stage]]


def _best(history: History, cells: list[dict[Any, Any]], last: set[str]) -> list[Ref]:
    """Return the scores of each cell's best night, and of the nights that the last ones were held against as best."""
    chosen = list[Ref]()
    for rows in history.rows_before("9999").values():
        speech = next((row.speech for row in reversed(rows) if row.speech), "")
        if (best := best_night(rows, speech)) is not None:
            chosen += _scored(best.model_dump())
    findings = history.findings().to_dict("records")
    named = {(f["other"], f["cell"]) for f in findings if f["against"] == "best" and f["night"] in last}
    return chosen + [ref for cell in cells if (cell["night"], cell["cell"]) in named for ref in _scored(cell)]


def _reported(reports: Path, known: Mapping[Ref, Known]) -> Iterator[tuple[str, list[Ref]]]:
    """Yield each report that lies in reports/ and what it says it was made from, with its own artifact."""
    for path in sorted(reports.glob("*/results.json")):
        try:
            made_from = json.loads(path.read_text(encoding="utf-8"))["made_from"]
            refs = [(each["stage"], each["key"]) for each in made_from.values()]
            rests_on = {f"input {name}": made_from[name]["sha256"] for name in ("binary", "verdict")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # somebody else's file
            continue
        own = [
            ref
            for ref, each in known.items()
            if ref[0] == "report" and each.record is not None and rests_on.items() <= each.record.parts.items()
        ]
        yield path.parent.name, refs + own


def _remove(store: Store, entry: Entry) -> bool:
    """Remove an artifact unless a run is making it, has looked it up, or used it since the survey."""
    folder = store.root.joinpath(*entry.ref)
    with store.lock_now(*entry.ref) as ours:
        if not ours:
            return False
        with gate(store, alone=True):
            used = _known(store, entry.ref).used_s > entry.used_s
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
        with store.lock_now(stage, key) as ours:
            newest = max(mtime_ns(path) for path in (folder, *_files(folder)))
            if not ours or not folder.exists() or newest > before_ns:  # its run ended since we listed it
                continue
            size = _bytes(folder)
            if not dry_run:
                shutil.rmtree(folder)
        yield folder.name, size


def _sweep_traces(store: Store) -> None:
    """Remove locks and memos of what is gone, notes of dead runs, and files that a kill left beside their place."""
    with gate(store, alone=True):
        in_use(store, clear=True)
    for path in (store.root / ".locks").glob("*.lock"):
        stage, _, key = path.stem.rpartition("-")
        if not (store.root / stage / key).exists() and not store.work(stage, key).exists():
            with store.lock_now(stage, key) as ours:
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


def age(seconds: float) -> str:
    """Say how long that is, in the largest unit of which it has two."""
    for unit, length in (("days", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
