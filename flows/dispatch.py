"""Give a night's cells to the work queues: a deployment `port/<target>` runs each, on whichever worker draws it.

A cell's child run is known by its idempotency key, night and cell. So a night that was killed and is tried again finds
its children; those that crashed are set going again, and one that finished is never run twice.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry

from flows.port_form import form_values
from flows.server import retry_on_outage
from nightjar.errors import BadOptions, NightjarError, ServerMissing
from nightjar.nightly.config import CellRequest
from nightjar.nightly.outcomes import CellResult, Failure, failure_from_exception, failure_from_message
from nightjar.request import PortRequest
from nightjar.store.run_lock import remove_lock
from tasks.announce import RESULTS
from tasks.publish import command_line
from tasks.stage import current_run

log = logging.getLogger("nightjar.nightly")

POLL_S = 2.0
REVIVALS = 2  # of a child whose process is lost; then something kills it
PAGE = 100  # runs asked for at once


class Child(NamedTuple):
    """A cell and the flow run that ports it."""

    cell_request: CellRequest
    run_id: UUID


def dispatch_cells(cell_requests: Sequence[CellRequest], night: str, patience_s: float) -> list[CellResult]:
    """Give every cell to its target's queue, wait for all of them, and read what came of each, in their order.

    Raises ServerMissing without a Prefect server: there are no queues then.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ServerMissing("cells are given to work queues by a Prefect server: set PREFECT_API_URL, or leave it out")
    ended: dict[str, CellResult] = {}
    with get_client(sync_client=True) as client:
        children = []
        for each in cell_requests:
            try:
                key = f"{night}-{each.cell}"
                children.append(Child(each, retry_on_outage(partial(_started, client, each, key))))
            except NightjarError as error:
                ended[each.cell] = _ended(each, 0.0, failure_from_exception(error))
        for child, run in _finished(client, children, patience_s):
            done = retry_on_outage(partial(_read, client, child.cell_request, run))
            ended[done.cell_request.cell] = done
            _note(done.results or {})
            what = done.failure.outcome if done.failure is not None else (done.results or {}).get("verdict")
            log.info("%s: %s after %.0f s", done.cell_request.cell, what, done.seconds)
    return [ended[each.cell] for each in cell_requests]


def _note(results: dict[str, Any]) -> None:
    """Keep gc from a cell's scores: until the night is over, no row of the history speaks for them."""
    usage = current_run().usage
    verdict = results.get("made_from", {}).get("verdict", {})
    for stage, key in (("judge", verdict.get("key")), ("report", results.get("report_key"))):
        if key:
            usage.note(stage, key)


def parameters_for(deployment: DeploymentResponse, request: PortRequest) -> dict[str, Any]:
    """Fill in a deployment's form as a request says; raises BadOptions where an older form has no field for it."""
    fields = (deployment.parameter_openapi_schema or {}).get("properties", {})
    answers = form_values(request)
    asked_for = request.model_dump(exclude_defaults=True).keys()
    if lacking := sorted(asked_for & (answers.keys() - fields.keys())):
        raise BadOptions(
            f"deployment {deployment.name} has no field for {', '.join(lacking)}: leave it out of the night's config"
        )
    return {name: value for name, value in answers.items() if name in fields}


def _started(client: SyncPrefectClient, cell_request: CellRequest, key: str) -> UUID:
    """Return the cell's child run: a new one, or that of an earlier try, going again unless it came to a verdict."""
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    for run in client.read_flow_runs(flow_run_filter=wanted, limit=1):
        if run.state is not None and run.state.is_final() and _results(client, run) is None:
            _revive(client, run)
        return run.id
    name = f"port/{cell_request.request.target}"
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ServerMissing(
            f"the Prefect server has no deployment {name}: register it with `nightjar flows deploy`"
        ) from error
    started: Any = run_deployment(
        deployment.id,
        parameters=parameters_for(deployment, cell_request.request),
        idempotency_key=key,
        flow_run_name=f"port-{cell_request.cell.replace('/', '-')}",
        timeout=0,
    )
    run_id: UUID = started.id
    return run_id


def _revive(client: SyncPrefectClient, run: FlowRun) -> None:
    """Let a worker take up a run again, the same one: its finished stages are in the store."""
    log.warning("%s ended as %s: setting it going again", run.name, run.state_name)
    remove_lock(str(run.id))
    client.set_flow_run_state(run.id, AwaitingRetry(message="asked for again by the night"))


def _finished(
    client: SyncPrefectClient, children: Sequence[Child], patience_s: float
) -> Iterator[tuple[Child, FlowRun | None]]:
    """Yield the children as they end, and after `patience_s` the others as they are: None for one that is gone."""
    waiting = {child.run_id: child for child in children}
    lives = dict.fromkeys(waiting, REVIVALS)
    end = time.monotonic() + patience_s
    while waiting:
        late = time.monotonic() > end
        runs = {run.id: run for run in retry_on_outage(partial(_runs, client, list(waiting)))}
        for run_id in list(waiting):
            run = runs.get(run_id)
            if run is None or late or (run.state is not None and run.state.is_final()):
                if run is not None and run.state is not None and run.state.is_crashed() and lives[run_id] and not late:
                    lives[run_id] -= 1
                    _revive(client, run)
                    continue
                yield waiting.pop(run_id), run
        if waiting:
            time.sleep(POLL_S)


def _runs(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    pages = [FlowRunFilter(id=FlowRunFilterId(any_=list(ids[n : n + PAGE]))) for n in range(0, len(ids), PAGE)]
    return [run for page in pages for run in client.read_flow_runs(flow_run_filter=page, limit=PAGE)]


def _read(client: SyncPrefectClient, cell_request: CellRequest, run: FlowRun | None) -> CellResult:
    """Read what came of a child: the results that it left as an artifact, or the message that it ended with."""
    if run is None:
        return _ended(cell_request, 0.0, Failure(kind="", exit_code=4, message="somebody deleted its flow run"))
    seconds = run.total_run_time.total_seconds() if run.total_run_time else 0.0
    state = run.state
    if state is None or not state.is_final():
        said = f"{run.name} is still {run.state_name or 'waiting'}: is a worker running, and are the queues not paused?"
        return _ended(cell_request, seconds, Failure(kind="", exit_code=4, message=said))
    results = _results(client, run)
    if results is not None:
        return CellResult(
            cell_request=cell_request, seconds=seconds, command=command_line(cell_request.request), results=results
        )
    if state.is_completed():
        said = f"{run.name} left no results: is its worker's checkout as new as this one?"
        return _ended(cell_request, seconds, Failure(kind="", exit_code=4, message=said))
    return _ended(cell_request, seconds, failure_from_message(state.message or f"{run.name} ended as {state.name}"))


def _results(client: SyncPrefectClient, run: FlowRun) -> dict[str, Any] | None:
    """Read the results that a run, or a run of `port` within it, left; None where there are none."""
    nested = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    ids = [run.id, *(each.id for each in client.read_flow_runs(flow_run_filter=nested))]
    left = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=ids), type=ArtifactFilterType(any_=[RESULTS])
        ),
        sort=ArtifactSort.CREATED_DESC,
        limit=1,
    )
    if not left or not isinstance(left[0].data, str):
        return None
    results: dict[str, Any] = json.loads(left[0].data)
    return results


def _ended(cell_request: CellRequest, seconds: float, failure: Failure) -> CellResult:
    return CellResult(
        cell_request=cell_request, seconds=seconds, command=command_line(cell_request.request), failure=failure
    )
