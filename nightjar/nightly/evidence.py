"""What the store has of a cell's night: its scores clip by clip, and what they were made from."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nightjar.files import read_json_object
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
    verdict = read_json(store, "judge", cell.judge, "verdict.json")
    report = read_json(store, "report", cell.report, "results.json")
    try:
        return Evidence(
            cell=cell,
            scores=verdict.get("scores", {}),
            made_from=report.get("made_from", {}),
            size_bytes=report.get("size_bytes", {}),
        )
    except ValidationError:  # written by a version with other scores
        return Evidence(cell=cell)


def artifact_file(store: Store, stage: str, key: str, name: str) -> Path | None:
    """Return the path of a file of an artifact, verified; None where the artifact is gone."""
    if not re.fullmatch(r"[0-9a-f]{8,64}", key):  # an edited table could name any file
        return None
    record, _ = store.find(stage, key)
    path = store.path(record.artifact) / name if record is not None else None
    return path if path is not None and path.is_file() else None


def read_json(store: Store, stage: str, key: str, name: str) -> dict[str, Any]:
    """Read a JSON object of an artifact; empty where it is gone or damaged."""
    path = artifact_file(store, stage, key, name)
    return read_json_object(path) if path is not None else {}
