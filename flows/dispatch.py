"""Cells of a night as flow runs: here as child runs of `port`, or on work queues, by the deployment `port/<target>`.

The run of a dispatched cell has an idempotency key, night and cell. So a night that is retried after a kill finds its
runs; those that crashed are restarted, and a finished one never runs twice.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flows.port import port
from flows.port_form import form_values
from flows.server import restart_run, retry_on_outage
from nightjar.errors import BadOptions, NightjarError, ServerMissing
from nightjar.nightly.config import CellRequest
from nightjar.nightly.outcomes import CellResult, failure_from_exception, failure_from_message
from nightjar.request import PortRequest
from tasks.publish import RESULTS
from tasks.stage import current_run

log = logging.getLogger("nightjar.nightly")

POLL_S = 2.0
RESTARTS = 2  # of a run whose process is lost; more would be lost too
PAGE = 100  # runs per request


def call_port(request: PortRequest) -> dict[str, Any]:
    """Run the flow `port` in this process, as a child run if there is a parent on a server."""
    results: dict[str, Any] = port(request) if FlowRunContext.get() is not None else port.fn(request)
    return results


def dispatch_cells(cell_requests: Sequence[CellRequest], night: str, patience_s: float) -> list[CellResult]:
    """Dispatch every cell to its target's queue, wait for all of them, and return their results in the same order.

    Raises ServerMissing without a Prefect server, which has the queues.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ServerMissing("--hand-out needs a Prefect server: set PREFECT_API_URL, or remove --hand-out")
    finished: dict[str, CellResult] = {}
    with get_client(sync_client=True) as client:
        dispatched: dict[UUID, CellRequest] = {}
        for each in cell_requests:
            try:
                dispatched[retry_on_outage(partial(_start, client, each, f"{night}-{each.cell}"))] = each
            except NightjarError as error:
                finished[each.cell] = CellResult(cell_request=each, failure=failure_from_exception(error))
        for run_id, run in _wait(client, dispatched, patience_s):
            each = dispatched[run_id]
            result = retry_on_outage(partial(_read, client, each, run))
            finished[each.cell] = result
            results = result.results or {}
            # Protect its scores from gc until the night is in the history.
            verdict = results.get("made_from", {}).get("verdict", {})
            for stage, key in (("judge", verdict.get("key")), ("report", results.get("report_key"))):
                if key:
                    current_run().usage.note(stage, key)
            outcome = result.failure.outcome if result.failure is not None else results.get("verdict")
            log.info("%s: %s after %.0f s", each.cell, outcome, result.seconds)
    return [finished[each.cell] for each in cell_requests]


def _start(client: SyncPrefectClient, cell_request: CellRequest, key: str) -> UUID:
    """Return the cell's flow run: a new one, or that of an earlier try, restarted if it ended without results.

    Raises ServerMissing without a deployment for the target, BadOptions if its form is older and lacks a field.
    """
    wanted = FlowRunFilter.model_validate({"idempotency_key": {"any_": [key]}})
    for run in client.read_flow_runs(flow_run_filter=wanted, limit=1):
        if run.state is not None and run.state.is_final() and _results(client, run) is None:
            _restart(client, run)
        return run.id
    request = cell_request.request
    name, values = f"port/{request.target}", form_values(request)
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ServerMissing(
            f"the Prefect server has no deployment {name}: register it with `nightjar flows deploy`"
        ) from error
    fields = (deployment.parameter_openapi_schema or {}).get("properties", {})
    if lacking := sorted(request.model_dump(exclude_defaults=True).keys() & (values.keys() - fields.keys())):
        raise BadOptions(
            f"deployment {deployment.name} has no field for {', '.join(lacking)}: run `nightjar flows deploy`, or "
            "remove it from the night's config"
        )
    started: Any = run_deployment(
        deployment.id,
        parameters={field: value for field, value in values.items() if field in fields},
        idempotency_key=key,
        flow_run_name=f"port-{cell_request.cell.replace('/', '-')}",
        timeout=0,
    )
    run_id: UUID = started.id
    return run_id


def _restart(client: SyncPrefectClient, run: FlowRun) -> None:
    log.warning("%s ended as %s: restarting it", run.name, run.state_name)
    restart_run(client, run, "restarted by the night")


def _wait(
    client: SyncPrefectClient, run_ids: Iterable[UUID], patience_s: float
) -> Iterator[tuple[UUID, FlowRun | None]]:
    """Yield the runs as they end (None if deleted), and after `patience_s` those still running."""
    waiting = dict.fromkeys(run_ids, 0)  # how often each was restarted
    end = time.monotonic() + patience_s
    while waiting:
        late = time.monotonic() > end
        runs = retry_on_outage(partial(_read_runs, client, list(waiting)))
        for run_id, restarts in list(waiting.items()):
            run = runs.get(run_id)
            state = run.state if run is not None else None
            crashed = state is not None and state.is_crashed()
            if run is not None and crashed and not late and restarts < RESTARTS:
                waiting[run_id] += 1
                _restart(client, run)
            elif run is None or late or (state is not None and state.is_final()):
                del waiting[run_id]
                yield run_id, run
        if waiting:
            time.sleep(POLL_S)


def _read_runs(client: SyncPrefectClient, ids: Sequence[UUID]) -> dict[UUID, FlowRun]:
    runs: dict[UUID, FlowRun] = {}
    for start in range(0, len(ids), PAGE):
        wanted = FlowRunFilter.model_validate({"id": {"any_": ids[start : start + PAGE]}})
        runs |= {run.id: run for run in client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)}
    return runs


def _read(client: SyncPrefectClient, cell_request: CellRequest, run: FlowRun | None) -> CellResult:
    """Read the result of a cell's run: the results that it left as an artifact, or its final message."""
    results, message = None, "its flow run was deleted: start the night again"
    if run is not None and (run.state is None or not run.state.is_final()):
        message = (
            f"{run.name} is still {run.state_name or 'waiting'}: check that a worker runs and that the queues are not "
            "paused, or give a longer --patience-h"
        )
    elif run is not None and run.state is not None and (results := _results(client, run)) is None:
        message = run.state.message or f"{run.name} ended as {run.state.name}"
        if run.state.is_completed():
            message = f"{run.name} left no results: update its worker's checkout to this version"
    seconds = run.total_run_time.total_seconds() if run is not None and run.total_run_time else 0.0
    failure = failure_from_message(message) if results is None else None
    return CellResult(cell_request=cell_request, seconds=seconds, results=results, failure=failure)


def _results(client: SyncPrefectClient, run: FlowRun) -> dict[str, Any] | None:
    """Read the results that a run, or a run of `port` within it, left; None if there are none."""
    nested = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run.id]}})
    ids = [run.id, *(each.id for each in client.read_flow_runs(flow_run_filter=nested))]
    wanted = ArtifactFilter.model_validate({"flow_run_id": {"any_": ids}, "type": {"any_": [RESULTS]}})
    left = client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1)
    if not left or not isinstance(left[0].data, str):
        return None
    results: dict[str, Any] = json.loads(left[0].data)
    return results
