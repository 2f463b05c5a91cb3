"""The history as pages need it: rows by night and by cell, what differs between two, and what the store still has."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from nightjar.nightly.changes import cell_changes
from nightjar.nightly.evidence import Evidence, artifact_file, read_json
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.nightly.regression import best_night
from nightjar.report.site.urls import report_url
from nightjar.store.artifact import Store

Row = TypeVar("Row")


class NightHistory(NamedTuple):
    """All nights, oldest first, and what belongs to each."""

    nights: tuple[Night, ...]
    by_night: dict[str, tuple[Cell, ...]]
    by_cell: dict[str, tuple[Cell, ...]]
    findings: dict[str, tuple[Finding, ...]]
    rows: dict[tuple[str, str], Cell]  # by cell and night

    def before(self, cell: Cell) -> Cell | None:
        """Return a cell's row of its previous night, if it has one."""
        rows = self.by_cell[cell.cell]
        at = next(number for number, row in enumerate(rows) if row.night == cell.night)
        return rows[at - 1] if at else None

    def best(self, cell: Cell) -> Cell | None:
        """Return the best earlier night of a cell on this speech."""
        return best_night([row for row in self.by_cell[cell.cell] if row.night < cell.night], cell.speech)


def read_history(history: History) -> NightHistory:
    """Read the three tables; raises StoreBroken where one cannot be read or has an invalid row."""
    cells = history.rows(Cell)
    return NightHistory(
        nights=tuple(history.rows(Night)),
        by_night=_grouped(cells, lambda row: row.night),
        by_cell=_grouped(cells, lambda row: row.cell),
        findings=_grouped(history.rows(Finding), lambda row: row.night),
        rows={(row.cell, row.night): row for row in cells},
    )


def cell_differences(before: Cell | None, after: Cell) -> list[str]:
    """List what else the history knows to differ between two nights of a cell, likeliest cause first."""
    if before is None or not (before.tier and after.tier):  # one of them never ran
        return []
    tier = [f"tier {before.tier} → {after.tier}"] if before.tier != after.tier else []
    try:
        return tier + cell_changes(Evidence(cell=after), Evidence(cell=before))
    except ValueError:  # an edited table: the command does not parse
        return tier


class StoredResults:
    """What the store still has of the history: gc may have removed verdicts and reports."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # reads a verdict by its key; empty where it is gone
        self.verdict = functools.lru_cache(maxsize=32)(lambda key: read_json(store, "judge", key, "verdict.json"))

    def has_verdict(self, cell: Cell) -> bool:
        """Tell whether the verdict of a cell's night is in the store."""
        return artifact_file(self.store, "judge", cell.judge, "verdict.json") is not None

    def gates(self, key: str) -> list[dict[str, Any]]:
        """List the gates that a verdict did not pass; none where the verdict is gone."""
        verdict = self.verdict(key)
        return [gate for gate in verdict["verdict"]["gates"] if gate["outcome"] != "PASS"] if verdict else []

    def lost_verdicts(self, cells: Iterable[Cell]) -> list[Cell]:
        """List the cells that had a verdict which the store no longer has."""
        return [cell for cell in cells if cell.judge and not self.verdict(cell.judge)]


class SiteData(NamedTuple):
    """What every page is made from: the history, the store, and which difference and report pages exist."""

    history: NightHistory
    stored: StoredResults
    diffs: dict[tuple[str, str, str], str]  # (cell, night, other night) -> page
    reports: frozenset[str]  # keys of the reports that the site has a copy of

    def diff(self, after: Cell, before: Cell | None) -> str:
        """Return the page of a difference, empty where there is none."""
        return self.diffs.get((after.cell, after.night, before.night), "") if before is not None else ""

    def report(self, cell: Cell) -> str:
        """Return the page of a cell's report, empty where there is none."""
        return report_url(cell.report) if cell.report in self.reports else ""

    def row(self, cell: Cell, before: Cell | None) -> dict[str, Any]:
        """Make what a table of nights or cells shows of a row beside its figures."""
        return {
            "c": cell,
            "before": before,
            "report": self.report(cell),
            "diff": self.diff(cell, before),
            "new": ", ".join(cell_differences(before, cell)),
        }


def _grouped(rows: Sequence[Row], of: Callable[[Row], str]) -> dict[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(of(row), []).append(row)
    return {name: tuple(group) for name, group in found.items()}
