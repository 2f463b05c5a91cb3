"""One night: every cell of a config as a child run of `port`, then a comparison with earlier nights.

A failed cell does not stop the others. The results go into the history, with which the next night is compared. The flow
run is Failed if the night failed, with the reason in its message.
"""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.dispatch import call_port, dispatch_cells
from flows.port import port
from flows.server import retry_on_outage
from nightjar.errors import NightjarError
from nightjar.nightly.config import CellRequest, NightRequest, read_config
from nightjar.nightly.evidence import read_evidence
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.nightly.outcomes import CellResult, Failure, cell_row, failure_from_exception, night_row, night_summary
from nightjar.nightly.regression import best_night, cell_findings
from nightjar.paths import reports_folder
from nightjar.progress import StageOutcome
from nightjar.report.site.build import write_site
from nightjar.store.artifact import Store
from nightjar.store.remote import open_store
from tasks.publish import announce_night, publish_night
from tasks.stage import Run, current_or_new_run, running, separate_run

log = logging.getLogger("nightjar.nightly")

STAMP = "%Y-%m-%dT%H:%M:%SZ"


def night_name() -> str:
    """Return the night's name: the time in UTC when the flow run was due, which a retry keeps; now without a run."""
    due: datetime = flow_run.scheduled_start_time
    return due.astimezone(UTC).strftime(STAMP)


def night_run_name() -> str:
    """Return the name of a night's flow run, started with a request or by the form."""
    parameters = flow_run.parameters
    night = getattr(parameters.get("request"), "night", None) or parameters.get("night")
    return f"night-{night or night_name()}"


@flow(name="nightly", flow_run_name=night_run_name, persist_result=False)
def nightly(request: NightRequest) -> Any:
    """Run every cell, add the night to the history, and report what failed and what changed since earlier nights."""
    cell_requests = read_config(request.file())
    night, started = request.night or night_name(), datetime.now(UTC).strftime(STAMP)
    with current_or_new_run(()) as run:
        if request.hand_out:
            finished = dispatch_cells(cell_requests, night, request.patience_h * 3600)
        else:
            finished = [_run_here(each, run) for each in cell_requests]
        row, cells, found = record_night(night, started, finished, run.store)
        if request.site:
            _write_site(run.store)
    summary = night_summary(row, cells, found)
    results = {
        "night": row.model_dump(mode="json"),
        "cells": [cell.model_dump(mode="json") for cell in cells],
        "findings": [finding.model_dump(mode="json") for finding in found],
        "sentence": summary,
    }
    if FlowRunContext.get() is None:
        return results
    retry_on_outage(lambda: publish_night(row, cells, found))
    announce_night(row, summary, found)
    return (Failed if row.outcome == "FAIL" else Completed)(message=summary, data=results)


def record_night(
    night: str, started: str, finished: Sequence[CellResult], store: Store
) -> tuple[Night, list[Cell], list[Finding]]:
    """Compare the cells with earlier nights and write all into the history, in place of a night of the same name.

    Raises StoreBroken if the history cannot be read or written.
    """
    history = History()
    before = history.rows_before(night)
    cells = [cell_row(night, each) for each in finished]
    failures = {each.cell_request.cell: each.failure for each in finished if each.failure is not None}
    found = list[Finding]()
    for cell in cells:
        found += _compare_with_earlier(store, cell, before.get(cell.cell, []), failures.get(cell.cell))
    known = frozenset(name for name, rows in before.items() if any(row.tier for row in rows))
    row = night_row(night, started, datetime.now(UTC).strftime(STAMP), cells, failures, known, flow_run.id or "")
    history.append(row, cells, found)
    return row, cells, found


def plan_night(request: NightRequest) -> list[tuple[str, list[StageOutcome] | Failure]]:
    """Return for every cell which stages would run and why, or why it cannot run; runs nothing."""
    plans: list[tuple[str, list[StageOutcome] | Failure]] = []
    for each in read_config(request.file()):
        run = Run(open_store(), frozenset(each.request.refresh), plan=True)
        try:
            with running(run):
                port.fn(each.request)
            plans.append((each.cell, run.outcomes))
        except NightjarError as error:
            plans.append((each.cell, failure_from_exception(error)))
    return plans


def _write_site(store: Store) -> None:
    """Write the pages of all nights; a failure to write them does not fail the night."""
    try:
        written = write_site(History(), store, reports_folder() / "site")
        log.info("%d of %d pages of %s were written", written.made, written.pages, written.first)
    except (NightjarError, OSError) as error:
        log.warning("the site was not written: %s", error)


def _compare_with_earlier(store: Store, cell: Cell, before: list[Cell], failure: Failure | None) -> list[Finding]:
    """Find what changed in one cell since the last night with a verdict and since the best night."""
    last = next((row for row in reversed(before) if row.wer is not None), None)
    with_last, with_best = (
        read_evidence(store, row) if row is not None and cell.wer is not None else None
        for row in (last, best_night(before, cell.speech))
    )
    origin = failure.origin if failure is not None else ""
    return cell_findings(read_evidence(store, cell), with_last, with_best, before, origin)


def _run_here(cell_request: CellRequest, run: Run) -> CellResult:
    """Run a cell in this process; any failure becomes its result, and the next cell runs."""

    def run_port() -> dict[str, Any]:
        with separate_run(cell_request.request.refresh, cell_request.request.board_wait):
            return call_port(cell_request.request)

    began = time.monotonic()
    results, failure = None, None
    try:
        results = retry_on_outage(run_port)
        why = str(results["verdict"])
    except Exception as error:  # but not KeyboardInterrupt and Prefect's termination, which end the night
        failure = failure_from_exception(error)
        why = failure.outcome
        log.warning("%s is %s: %s", cell_request.cell, why, failure.message)
    seconds = time.monotonic() - began
    run.on_outcome(StageOutcome(name=cell_request.cell, seconds=max(seconds, 0.01), cached=False, why=why))
    log.info("%s: %s after %.0f s", cell_request.cell, why, seconds)
    return CellResult(cell_request=cell_request, seconds=seconds, results=results, failure=failure)
