"""One night: every cell of a config, each a child run of `port`; then what changed since the nights before.

A cell that fails is a row like any other and stops nobody. The rows go into the history, which the next night is held
against; the run is Failed if the night failed, with the sentence that says by what.
"""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from flows.dispatch import dispatch_cells
from flows.port import port
from flows.server import retry_on_outage
from nightjar.errors import NightjarError
from nightjar.nightly.config import CellRequest, NightRequest, read_config
from nightjar.nightly.evidence import Evidence, read_evidence
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.nightly.outcomes import CellResult, Failure, cell_row, failure_from_exception, night_row, night_summary
from nightjar.nightly.regression import best_night, cell_findings
from nightjar.paths import reports_folder
from nightjar.progress import StageOutcome
from nightjar.report.site.build import write_site
from nightjar.store.artifact import Store
from nightjar.store.remote import open_store
from tasks.announce import announce_night
from tasks.publish import command_line, publish_night
from tasks.stage import Run, current_or_new_run, running, separate_run

log = logging.getLogger("nightjar.nightly")

STAMP = "%Y-%m-%dT%H:%M:%SZ"


def night_name() -> str:
    """Name the night: when the flow run was due in UTC, which a retry does not change; now where there is no run."""
    context = FlowRunContext.get()
    planned = context.flow_run.expected_start_time if context is not None and context.flow_run is not None else None
    return (planned or datetime.now(UTC)).astimezone(UTC).strftime(STAMP)


def _run_name() -> str:
    context = FlowRunContext.get()
    request = (context.parameters or {}).get("request") if context is not None else None
    return f"night-{getattr(request, 'night', None) or night_name()}"


@flow(name="nightly", flow_run_name=_run_name, persist_result=False)
def nightly(request: NightRequest) -> Any:
    """Run every cell, keep the night in the history, and say what failed and what changed since earlier nights."""
    cell_requests = read_config(request.file())
    night, started = request.night or night_name(), datetime.now(UTC).strftime(STAMP)
    with current_or_new_run(()) as run:
        if request.hand_out:
            ended = dispatch_cells(cell_requests, night, request.patience_h * 3600)
        else:
            ended = [_run_here(each, run) for each in cell_requests]
        row, cells, found = record_night(night, started, ended, run.store, History())
        if request.site:
            _write_site(run.store)
    said = night_summary(row, cells, found)
    results = {
        "night": row.model_dump(mode="json"),
        "cells": [cell.model_dump(mode="json") for cell in cells],
        "findings": [finding.model_dump(mode="json") for finding in found],
        "sentence": said,
    }
    if FlowRunContext.get() is None:
        return results
    retry_on_outage(lambda: publish_night(row, cells, found))
    announce_night(row, said, found)
    ending: State[Any] = (Failed if row.outcome == "FAIL" else Completed)(message=said, data=results)
    return ending


def record_night(
    night: str, started: str, ended: Sequence[CellResult], store: Store, history: History
) -> tuple[Night, list[Cell], list[Finding]]:
    """Hold what ended against earlier nights and write it all into the history; a night of this name is replaced.

    Raises StoreBroken when the history cannot be read or written.
    """
    before = history.rows_before(night)
    cells = [cell_row(night, each) for each in ended]
    failures = {each.cell_request.cell: each.failure for each in ended if each.failure is not None}
    found = [
        finding
        for cell in cells
        for finding in _looked_back(store, cell, before.get(cell.cell, []), failures.get(cell.cell))
    ]
    known = frozenset(name for name, rows in before.items() if any(row.tier for row in rows))
    context = FlowRunContext.get()
    flow_run = str(context.flow_run.id) if context is not None and context.flow_run is not None else ""
    row = night_row(night, started, datetime.now(UTC).strftime(STAMP), cells, failures, known, flow_run)
    history.append(row, cells, found)
    return row, cells, found


def plan_night(request: NightRequest) -> list[tuple[str, list[StageOutcome] | Failure]]:
    """Say of every cell what would run and why, or why it cannot; nothing is run."""
    said: list[tuple[str, list[StageOutcome] | Failure]] = []
    for cell_request in read_config(request.file()):
        run = Run(open_store(), frozenset(cell_request.request.refresh), plan=True)
        try:
            with running(run):
                port.fn(cell_request.request)
        except NightjarError as error:
            said.append((cell_request.cell, failure_from_exception(error)))
        else:
            said.append((cell_request.cell, run.outcomes))
    return said


def _write_site(store: Store) -> None:
    """Write the site anew; a night is no worse for a site that cannot be written."""
    try:
        written = write_site(History(), store, reports_folder() / "site")
        log.info("%d of %d pages of %s were made anew", written.made, written.pages, written.first)
    except (NightjarError, OSError) as error:
        log.warning("the site was not written: %s", error)


def _looked_back(store: Store, cell: Cell, before: list[Cell], failure: Failure | None) -> list[Finding]:
    """Find what changed in one cell; reads of the store the last night that has a verdict, and the best."""
    last = next((row for row in reversed(before) if row.wer is not None), None)
    best = best_night(before, cell.speech) if cell.wer is not None else None
    tonight = read_evidence(store, cell)
    against: list[Evidence | None] = [
        read_evidence(store, row) if row is not None and cell.wer is not None else None for row in (last, best)
    ]
    return cell_findings(tonight, against[0], against[1], before, failure.origin if failure is not None else "")


def _run_here(cell_request: CellRequest, run: Run) -> CellResult:
    """Run a cell in this process; whatever it ends in, the next one has its turn."""
    began = time.monotonic()
    results, failure = None, None
    try:
        results = _ported(cell_request)
    except Exception as error:  # not KeyboardInterrupt, not Prefect's termination: those end the night
        failure = failure_from_exception(error)
        log.warning("%s is %s: %s", cell_request.cell, failure.outcome, failure.message)
    seconds = time.monotonic() - began
    why = failure.outcome if failure is not None else str((results or {})["verdict"])
    run.on_outcome(StageOutcome(name=cell_request.cell, seconds=max(seconds, 0.01), cached=False, why=why))
    log.info("%s: %s after %.0f s", cell_request.cell, why, seconds)
    return CellResult(
        cell_request=cell_request,
        seconds=seconds,
        command=command_line(cell_request.request),
        results=results,
        failure=failure,
    )


def _ported(cell_request: CellRequest) -> dict[str, Any]:
    """Run the flow `port`; where the Prefect server went away meanwhile, wait for it and take what is in the store."""

    def once() -> dict[str, Any]:
        with separate_run(cell_request.request.refresh, cell_request.request.board_wait):
            served = FlowRunContext.get() is not None
            results: dict[str, Any] = port(cell_request.request) if served else port.fn(cell_request.request)
            return results

    return retry_on_outage(once)
