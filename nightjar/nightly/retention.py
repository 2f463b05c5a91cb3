"""Retention: which artifacts gc must keep, and why."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.nightly.regression import best_night
from nightjar.paths import reports_folder
from nightjar.store.artifact import Store
from nightjar.store.bucket import Bucket
from nightjar.store.gc import DAY_S, ArtifactInfo, Entry, Ref, age, inspect_artifact
from nightjar.store.remote import read_record
from nightjar.store.remote_gc import records
from nightjar.store.usage import in_use

KEEP_NIGHTS = 7
OLDER_THAN_S = 2 * DAY_S  # a night that failed half-way runs again the next day
REMOTE_OLDER_THAN_S = 30 * DAY_S  # since it was written: a bucket does not record the last use


def retention_entries(
    store: Store,
    history: History,
    *,
    keep_nights: int = KEEP_NIGHTS,
    older_than_s: float = OLDER_THAN_S,
    reports: Path | None = None,
) -> list[Entry]:
    """List every artifact of a store with the reasons to keep it, none where nothing needs it; changes nothing.

    Raises StoreBroken when the history cannot be read.
    """
    known = {ref: inspect_artifact(store, ref) for ref in store.refs()}
    return _entries(known, in_use(store), history, keep_nights, older_than_s, reports or reports_folder())


def _entries(
    known: Mapping[Ref, ArtifactInfo],
    used: Iterable[Ref],
    history: History,
    keep_nights: int,
    older_than_s: float,
    reports: Path,
) -> list[Entry]:
    """Find the reasons to keep artifacts of a store or a bucket; used: those of live runs."""
    reasons: dict[Ref, list[str]] = {ref: [] for ref in known}

    def keep(refs: Iterable[Ref], why: str) -> None:
        for ref in refs:
            if ref in reasons and why not in reasons[ref]:
                reasons[ref].append(why)

    keep(used, "a run uses it")
    cells = history.rows(Cell)
    keep(_scored(cells), "a score in the history")
    last = {night.night for night in history.rows(Night)[-keep_nights:]} if keep_nights else set()
    inputs = _inputs(known)
    of_last = _scored(cell for cell in cells if cell.night in last)
    keep(_lineage(of_last, inputs), f"made the last {keep_nights} nights")
    keep(_lineage(_scored(_best(history, cells, last)), inputs), "made a cell's best night")
    for name, refs in _reported(reports, known):
        keep(_lineage(refs, inputs), f"made reports/{name}")
    since = time.time() - older_than_s
    keep([ref for ref, each in known.items() if each.used_s > since], f"used in the last {age(older_than_s)}")
    return [
        Entry(stage=ref[0], key=ref[1], bytes=each.bytes, made_s=each.made_s, used_s=each.used_s, why=tuple(why))
        for (ref, each), why in zip(known.items(), reasons.values(), strict=True)
    ]


def _inputs(known: Mapping[Ref, ArtifactInfo]) -> dict[Ref, list[Ref]]:
    """Find what each artifact was made from; of artifacts of one stage with equal content, the one used last."""
    by_content: dict[str, dict[str, Ref]] = {}
    records = {ref: each.record for ref, each in known.items() if each.record is not None}
    for ref in sorted(records, key=lambda ref: known[ref].used_s):
        by_content.setdefault(records[ref].sha256, {})[ref[0]] = ref
    inputs: dict[Ref, list[Ref]] = {}
    for ref, record in records.items():
        contents = (content for part, content in record.parts.items() if part.startswith("input "))
        inputs[ref] = [source for content in contents for source in by_content.get(content, {}).values()]
    return inputs


def _lineage(refs: Iterable[Ref], inputs: Mapping[Ref, list[Ref]]) -> set[Ref]:
    """Return artifacts with everything that they were made from."""
    todo, seen = list(refs), set[Ref]()
    while todo:
        ref = todo.pop()
        if ref not in seen:
            seen.add(ref)
            todo += inputs.get(ref, ())
    return seen


def _scored(cells: Iterable[Cell]) -> list[Ref]:
    refs = [ref for cell in cells for ref in (("judge", cell.judge), ("report", cell.report))]
    return [ref for ref in refs if ref[1]]


def _best(history: History, cells: list[Cell], last: set[str]) -> list[Cell]:
    """Return each cell's best night, and the nights that the last ones were compared with as best."""
    best = list[Cell | None]()
    for rows in history.rows_before("9999").values():
        best.append(best_night(rows, next((row.speech for row in reversed(rows) if row.speech), "")))
    named = {(f.other, f.cell) for f in history.rows(Finding) if f.against == "best" and f.night in last}
    return [*filter(None, best), *(cell for cell in cells if (cell.night, cell.cell) in named)]


def _reported(reports: Path, known: Mapping[Ref, ArtifactInfo]) -> Iterator[tuple[str, list[Ref]]]:
    """Yield each report in reports/ with the artifacts it was made from and its own."""
    for path in sorted(reports.glob("*/results.json")):
        try:
            made_from = json.loads(path.read_text(encoding="utf-8"))["made_from"]
            refs = [(each["stage"], each["key"]) for each in made_from.values()]
            rests_on = {f"input {name}": made_from[name]["sha256"] for name in ("binary", "verdict")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another program's file
            continue
        own = [
            ref
            for ref, each in known.items()
            if ref[0] == "report" and each.record is not None and rests_on.items() <= each.record.parts.items()
        ]
        yield path.parent.name, refs + own


def remote_retention_entries(
    bucket: Bucket, history: History, *, keep_nights: int = KEEP_NIGHTS, older_than_s: float = REMOTE_OLDER_THAN_S
) -> list[Entry]:
    """List every artifact of a bucket with the reasons to keep it; changes nothing.

    Raises StoreBroken when the bucket or the history cannot be read.
    """
    known: dict[Ref, ArtifactInfo] = {}
    for seen, ref in records(bucket):
        record = read_record(bucket, ref)
        size = record.bytes if record is not None else 0
        known[ref] = ArtifactInfo(record, size, seen.written_s, seen.written_s)
    return _entries(known, (), history, keep_nights, older_than_s, reports_folder())
