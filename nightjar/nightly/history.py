"""The history of nights: three tables on disk, with one row per night, per cell and per finding.

`history/` (or the folder NIGHTJAR_HISTORY names) holds nights.csv, cells.csv and findings.csv. A cell's row refers to
its verdict and report by their keys in the store; gc keeps those as long as the row is there. A night is written to
nights.csv last: until then, its rows in the other tables are not read. pandas is imported when used: every command
loads this module.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from nightjar.errors import StoreBroken
from nightjar.files import storage_errors, write_atomic
from nightjar.locks import locked
from nightjar.paths import ROOT

if TYPE_CHECKING:
    import pandas as pd

CellOutcome = Literal["PASS", "FAIL", "UNDECIDED", "BROKEN", "MISSING"]


class Row(BaseModel, frozen=True):
    """What the rows of all tables have."""

    night: str = Field(description="the time when the night was due, UTC: 2026-11-20T02:00:00Z")


AnyRow = TypeVar("AnyRow", bound=Row)


class Night(Row, frozen=True):
    """One night."""

    started: str
    finished: str
    outcome: Literal["PASS", "FAIL"] = Field(description="FAIL if a gate of a cell that counts failed or a cell broke")
    cells: int
    failed: str = Field("", description="the cells that made it fail and why, one sentence each, joined by '; '")
    flow_run: str = Field("", description="id of the Prefect flow run, if there was one")


class Cell(Row, frozen=True):
    """One cell of a night: the result of `port` for one model on one target in one precision."""

    cell: str = Field(description="model/target/precision, with /board where one was given; the same every night")
    model: str
    target: str
    precision: str
    board: str = ""
    tier: str = Field("", description="device, vendor-simulator, host, stand-in; empty if it never ran")
    outcome: CellOutcome = Field(description="the verdict; BROKEN: ended with exit 4; MISSING: exit 3, or bad input")
    counts: bool = Field(description="whether its gates are gates of the night; a stand-in's are not")
    error: str = ""
    wer: float | None = Field(None, description="percent, as the two below")
    wer_float: float | None = None
    wer_stock: float | None = None
    delta_wer: float | None = None
    low: float | None = Field(None, description="95 % interval of delta_wer, points")
    high: float | None = None
    clips: int | None = None
    words: int | None = None
    size_bytes: int | None = Field(None, description="all parts")
    rtf: float | None = Field(None, description="end to end, p50; tier device or host only")
    int8_mac_share: float | None = Field(None, description="of the encoder")
    empty: int | None = None
    looping: int | None = None
    capped: int | None = None
    seconds: float = Field(0, description="duration of the cell tonight")
    executed: int = Field(0, description="stages that ran; the others came from the store")
    checkpoint: str = Field("", description="sha256, as the three below")
    speech: str = ""
    code: str = Field("", description="of all code parts of all stages")
    versions: str = Field("", description="libraries and SDKs, 'rknn-toolkit2 2.5.0; torch 2.13.0'")
    board_facts: str = ""
    judge: str = Field("", description="key of the verdict in the store: judge/<key>/verdict.json")
    report: str = Field("", description="key of the report in the store: report/<key>/{report.html, results.json}")
    command: str = Field("", description="runs this cell again")


class Finding(Row, frozen=True):
    """A difference of a cell's night from another night, and its likely cause."""

    cell: str
    kind: Literal["wer", "outcome", "size", "rtf", "versions"]
    regression: bool = Field(description="False: an improvement, or a mere difference")
    against: Literal["last", "best"]
    other: str = Field(description="the night it is compared with")
    before: str
    after: str
    low: float | None = Field(None, description="paired 95 % interval of the difference in WER, points")
    high: float | None = None
    causes: str = Field("", description="what else differs, likeliest first: 'checkpoint; toolchain rknn-toolkit2 …'")
    sentence: str


class History:
    """Read and append nights; raises StoreBroken for an unreadable table, an invalid row, or a full disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get("NIGHTJAR_HISTORY") or ROOT / "history")

    def rows(self, kind: type[AnyRow]) -> list[AnyRow]:
        """Return the nights, cells or findings of finished nights, oldest first."""
        finished = {night.night for night in self._read(Night)}
        rows = [row for row in self._read(kind) if row.night in finished]
        return sorted(rows, key=lambda row: (row.night, getattr(row, "cell", "")))

    def table(self, kind: type[Row]) -> "pd.DataFrame":
        """Return the same rows as a table."""
        return _table(kind, self.rows(kind))

    def rows_before(self, night: str) -> dict[str, list[Cell]]:
        """Return the rows of every cell in nights before this one, oldest first, by the cell's name."""
        found: dict[str, list[Cell]] = {}
        for row in self.rows(Cell):
            if row.night < night:
                found.setdefault(row.cell, []).append(row)
        return found

    def append(self, night: Night, cells: Sequence[Cell], findings: Sequence[Finding]) -> None:
        """Add a night, or replace it; a process killed meanwhile leaves the history without it."""
        tables: list[tuple[type[Row], Sequence[Row]]] = [(Cell, cells), (Finding, findings), (Night, [night])]
        with storage_errors(), locked(self.folder / ".lock"):
            for kind, rows in tables:
                others = [row for row in self._read(kind) if row.night != night.night]
                write_atomic(self._file(kind), _table(kind, [*others, *rows]).to_csv(index=False))

    def _file(self, kind: type[Row]) -> Path:
        return self.folder / f"{kind.__name__.lower()}s.csv"

    def _read(self, kind: type[AnyRow]) -> list[AnyRow]:
        """Read a table; a column that a later version added has its default in older nights."""
        path = self._file(kind)
        if not path.exists():
            return []
        import pandas as pd

        try:
            table = pd.read_csv(path, dtype=str, na_filter=False)
            return [kind.model_validate({k: v for k, v in row.items() if v}) for row in table.to_dict("records")]
        except ValueError as error:
            reason = f"cannot be read ({error})"
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                reason = f"has an invalid row ({'.'.join(map(str, first['loc']))}: {first['msg']})"
            raise StoreBroken(f"{path} {reason}: repair it, or move it away to start again") from error


def _table(kind: type[Row], rows: Sequence[Row]) -> "pd.DataFrame":
    import pandas as pd

    columns = list(kind.model_fields)
    return pd.DataFrame([row.model_dump() for row in rows], columns=columns)
