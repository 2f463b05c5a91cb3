"""What lies in the store of a cell's night: its scores clip by clip, and what they were made from."""

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from nightjar.nightly.history import Cell
from nightjar.scoring.score import Score
from nightjar.store.artifact import Store


class Evidence(BaseModel, frozen=True):
    """A cell's row with what the store has of it; empty where the cell never ran or its artifacts are gone."""

    cell: Cell
    scores: dict[str, Score] = {}
    made_from: dict[str, Any] = {}
    size_bytes: dict[str, int] = {}


def read_evidence(store: Store, cell: Cell) -> Evidence:
    """Read the verdict and report that a row refers to; what is gone, damaged or of another format is left out."""
    verdict = _read(store, "judge", cell.judge, "verdict.json")
    report = _read(store, "report", cell.report, "results.json")
    try:
        return Evidence(
            cell=cell,
            scores=verdict.get("scores", {}),
            made_from=report.get("made_from", {}),
            size_bytes=report.get("size_bytes", {}),
        )
    except ValidationError:  # written by a checkout whose scores said something else
        return Evidence(cell=cell)


def _read(store: Store, stage: str, key: str, name: str) -> dict[str, Any]:
    record, _ = store.find(stage, key) if key else (None, "")
    if record is None:
        return {}
    try:
        loaded = json.loads((store.path(record.artifact) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
