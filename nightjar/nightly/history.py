"""The history of nights: three tables on disk, with one row per night, per cell and per finding.

`history/` (or the folder NIGHTJAR_HISTORY names) holds nights.csv, cells.csv and findings.csv. A cell's row refers to
its verdict and report by their keys in the store; gc keeps those as long as the row is there. A night is written to
nights.csv last: until then, its rows in the other tables are not read.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from nightjar.errors import StoreBroken
from nightjar.files import storage_errors, write_atomic
from nightjar.locks import locked
from nightjar.paths import ROOT

Row = TypeVar("Row", bound=BaseModel)
CellOutcome = Literal["PASS", "FAIL", "UNDECIDED", "BROKEN", "MISSING"]


class Night(BaseModel, frozen=True):
    """One night, named by the time it was due, UTC."""

    night: str = Field(description="2026-11-20T02:00:00Z")
    started: str
    finished: str
    outcome: Literal["PASS", "FAIL"] = Field(description="FAIL if a gate of a cell that counts failed or a cell broke")
    cells: int
    failed: str = Field("", description="the cells that made it fail and why, one sentence each, joined by '; '")
    flow_run: str = Field("", description="id of the Prefect flow run, if there was one")


class Cell(BaseModel, frozen=True):
    """One cell of a night: the result of `port` for one model on one target in one precision."""

    night: str
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


class Finding(BaseModel, frozen=True):
    """A difference of a cell's night from another night, and its likely cause."""

    night: str
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
    """Read and append nights."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get("NIGHTJAR_HISTORY") or ROOT / "history")

    def nights(self) -> pd.DataFrame:
        """Return the table of nights, oldest first."""
        return self._read("nights", Night).sort_values("night", kind="stable", ignore_index=True)

    def cells(self) -> pd.DataFrame:
        """Return the table of cells of finished nights, oldest first."""
        return self._of_nights(self._read("cells", Cell))

    def findings(self) -> pd.DataFrame:
        """Return the table of findings of finished nights, oldest first."""
        return self._of_nights(self._read("findings", Finding))

    def night_rows(self) -> list[Night]:
        """Return all nights, oldest first; raises StoreBroken for an invalid row, as the two below."""
        return self._checked(self.nights(), Night, "nights")

    def cell_rows(self) -> list[Cell]:
        """Return the cells of finished nights, oldest first."""
        return self._checked(self.cells(), Cell, "cells")

    def finding_rows(self) -> list[Finding]:
        """Return the findings of finished nights, oldest first."""
        return self._checked(self.findings(), Finding, "findings")

    def rows_before(self, night: str) -> dict[str, list[Cell]]:
        """Return the rows of every cell in nights before this one, oldest first, by the cell's name."""
        found: dict[str, list[Cell]] = {}
        for row in self.cell_rows():
            if row.night < night:
                found.setdefault(row.cell, []).append(row)
        return found

    def append(self, night: Night, cells: Sequence[Cell], findings: Sequence[Finding]) -> None:
        """Add a night, or replace it; a process killed meanwhile leaves the history without it.

        Raises StoreBroken when the disk is full or a table cannot be read.
        """
        with storage_errors(), locked(self.folder / ".lock"):
            for table, kind, rows in (
                ("cells", Cell, cells),
                ("findings", Finding, findings),
                ("nights", Night, [night]),
            ):
                old = self._read(table, kind)
                new = pd.DataFrame([row.model_dump() for row in rows], columns=list(kind.model_fields))
                kept = old[old["night"] != night.night]
                together = pd.concat([kept.astype(object), new.astype(object)]) if len(kept) else new
                write_atomic(self.folder / f"{table}.csv", together.to_csv(index=False))

    def _of_nights(self, table: pd.DataFrame) -> pd.DataFrame:
        whole = table[table["night"].isin(self._read("nights", Night)["night"])]
        return whole.sort_values(["night", "cell"], kind="stable", ignore_index=True)

    def _read(self, table: str, kind: type[BaseModel]) -> pd.DataFrame:
        path = self.folder / f"{table}.csv"
        columns = list(kind.model_fields)
        if not path.exists():
            return pd.DataFrame(columns=columns)
        texts = {name: str for name, field in kind.model_fields.items() if field.annotation in (str,)}
        try:
            read = pd.read_csv(
                path, dtype=texts, keep_default_na=False, na_values={n: [""] for n in columns if n not in texts}
            )
        except (ValueError, UnicodeDecodeError) as error:
            raise StoreBroken(f"{path} cannot be read ({error}): repair it, or move it away to start again") from error
        return read.reindex(columns=columns)  # a column that a later version added is empty in older nights

    def _checked(self, table: pd.DataFrame, kind: type[Row], name: str) -> list[Row]:
        try:
            return [
                kind.model_validate({str(column): value for column, value in row.items() if not pd.isna(value)})
                for row in table.to_dict("records")
            ]
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise StoreBroken(
                f"{self.folder / name}.csv has an invalid row ({place}: {first['msg']}): repair it, or move it away to "
                "start again"
            ) from error
