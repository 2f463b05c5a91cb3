"""Retention: which artifacts gc must keep, and why."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nightjar.nightly.history import Cell, History
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
    return reasons_to_keep(
        {ref: inspect_artifact(store, ref) for ref in store.refs()},
        in_use(store),
        history,
        keep_nights,
        older_than_s,
        reports,
    )


def reasons_to_keep(
    known: Mapping[Ref, ArtifactInfo],
    used: Iterable[Ref],
    history: History,
    keep_nights: int,
    older_than_s: float,
    reports: Path | None,
) -> list[Entry]:
    """Find the reasons to keep artifacts of a store or a bucket; used: those of live runs."""
    by_content = _by_content(known)
    reasons: dict[Ref, list[str]] = {ref: [] for ref in known}

    def keep(refs: Iterable[Ref], why: str) -> None:
        for ref in refs:
            if ref in reasons and why not in reasons[ref]:
                reasons[ref].append(why)

    keep(used, "a run uses it")
    cells = history.cell_rows()
    keep([ref for cell in cells for ref in _scored(cell)], "a score in the history")
    last = {night.night for night in history.night_rows()[-keep_nights:]} if keep_nights else set()
    of_last = [ref for cell in cells if cell.night in last for ref in _scored(cell)]
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


def _by_content(known: Mapping[Ref, ArtifactInfo]) -> dict[str, list[Ref]]:
    """Index artifacts by content: of each stage the one that was used last."""
    found: dict[str, dict[str, Ref]] = {}
    for ref, each in sorted(known.items(), key=lambda item: item[1].used_s):
        if each.record is not None:
            found.setdefault(each.record.sha256, {})[ref[0]] = ref
    return {sha256: list(refs.values()) for sha256, refs in found.items()}


def _lineage(refs: Iterable[Ref], known: Mapping[Ref, ArtifactInfo], by_content: dict[str, list[Ref]]) -> set[Ref]:
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


def _scored(cell: Cell) -> list[Ref]:
    return [(stage, key) for stage, key in (("judge", cell.judge), ("report", cell.report)) if key]


def _best(history: History, cells: list[Cell], last: set[str]) -> list[Ref]:
    """Return the scores of each cell's best night, and of the nights that the last ones were compared with as best."""
    chosen = list[Ref]()
    for rows in history.rows_before("9999").values():
        speech = next((row.speech for row in reversed(rows) if row.speech), "")
        if (best := best_night(rows, speech)) is not None:
            chosen += _scored(best)
    named = {(f.other, f.cell) for f in history.finding_rows() if f.against == "best" and f.night in last}
    return chosen + [ref for cell in cells if (cell.night, cell.cell) in named for ref in _scored(cell)]


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
    return reasons_to_keep(known, (), history, keep_nights, older_than_s, None)
