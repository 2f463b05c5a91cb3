"""The history as pages need it: checked rows by night and by cell, what differs between two, and their artifacts."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from nightjar.errors import StoreBroken
from nightjar.nightly.changes import cell_changes
from nightjar.nightly.evidence import Evidence
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.nightly.regression import best_night
from nightjar.report.site.urls import is_key
from nightjar.store.artifact import Store

Row = TypeVar("Row", bound=BaseModel)


class NightHistory(NamedTuple):
    """All nights, oldest first, and what belongs to each."""

    nights: tuple[Night, ...]
    by_night: dict[str, tuple[Cell, ...]]
    by_cell: dict[str, tuple[Cell, ...]]
    findings: dict[str, tuple[Finding, ...]]

    def before(self, cell: Cell) -> Cell | None:
        """Return the night before of a cell, if it has one: the last that it was in."""
        rows = self.by_cell[cell.cell]
        at = next(number for number, row in enumerate(rows) if row.night == cell.night)
        return rows[at - 1] if at else None

    def best(self, cell: Cell) -> Cell | None:
        """Return the best earlier night of a cell on this speech."""
        return best_night([row for row in self.by_cell[cell.cell] if row.night < cell.night], cell.speech)


def read_history(history: History) -> NightHistory:
    """Read the three tables; raises StoreBroken where one cannot be read, or a row is no row."""
    nights = _rows(history.nights(), Night, history.folder / "nights.csv")
    cells = _rows(history.cells(), Cell, history.folder / "cells.csv")
    findings = _rows(history.findings(), Finding, history.folder / "findings.csv")
    return NightHistory(
        nights=nights,
        by_night=_grouped(cells, lambda row: row.night),
        by_cell=_grouped(cells, lambda row: row.cell),
        findings=_grouped(findings, lambda row: row.night),
    )


def cell_differences(before: Cell, after: Cell) -> list[str]:
    """Say what else the history knows to differ between two nights of a cell, likeliest cause of a difference first."""
    if not (before.tier and after.tier):  # one of them never ran: it is made of nothing
        return []
    tier = [f"tier {before.tier} → {after.tier}"] if before.tier != after.tier else []
    try:
        return tier + cell_changes(Evidence(cell=after), Evidence(cell=before))
    except ValueError:  # a command that no shell would take: somebody has edited the table
        return tier


def versions(text: str) -> dict[str, str]:
    """Part 'rknn-toolkit2 2.5.0; torch 2.13.0' into names and versions."""
    parts = (part.strip().rpartition(" ") for part in text.split(";") if part.strip())
    return {name or version: version for name, _, version in parts}


class StoredResults:
    """What the store still has of the history: verdicts and reports; gc may have taken either."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.verdict = functools.lru_cache(maxsize=32)(self._verdict)

    def file(self, stage: str, key: str, name: str) -> Path | None:
        """Return where a file of an artifact lies, verified, or None where there is none any more."""
        if not is_key(key):
            return None
        record, _ = self.store.find(stage, key)
        path = self.store.path(record.artifact) / name if record is not None else None
        return path if path is not None and path.is_file() else None

    def _verdict(self, key: str) -> dict[str, Any] | None:
        """Read verdict.json by its key."""
        path = self.file("judge", key, "verdict.json")
        if path is None:
            return None
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    def gates(self, key: str) -> list[dict[str, Any]]:
        """List the gates of a verdict that it did not pass; none where the store has no such verdict."""
        verdict = self.verdict(key)
        return [gate for gate in verdict["verdict"]["gates"] if gate["outcome"] != "PASS"] if verdict else []


def _rows(table: pd.DataFrame, kind: type[Row], path: Path) -> tuple[Row, ...]:
    try:
        return tuple(
            kind.model_validate({str(name): value for name, value in row.items() if not pd.isna(value)})
            for row in table.to_dict("records")
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreBroken(
            f"{path} has a row that is none of ours ({place}: {first['msg']}): mend it, or move it away to begin anew"
        ) from error


def _grouped(rows: Sequence[Row], of: Callable[[Row], str]) -> dict[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(of(row), []).append(row)
    return {name: tuple(group) for name, group in found.items()}
