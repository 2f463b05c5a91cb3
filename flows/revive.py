"""Find deployed runs whose process is gone, and let a worker continue them.

A killed worker cannot tell the server, so its runs stay `Running`. The run's lock (nightjar/store/run_lock.py) tells at
once whether its process is alive. Where the lock cannot be seen, Prefect's heartbeat of every 30 s must do: a run
counts as dead only if it is silent for long and misses one more heartbeat, because a server that was away itself has
received none. A live run is never touched.
"""

import time
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.filters import EventFilter
from prefect.states import Cancelled, Crashed
from prefect.types._datetime import now

from flows.server import prefect_client, restart_run
from nightjar.store.run_lock import run_status

HEARTBEAT_S = 30.0  # deployments/prefect.yaml: PREFECT_FLOWS_HEARTBEAT_FREQUENCY; Prefect allows no less
GRACE_S = 5.0  # for a live worker to report itself that a run's process has died
STARTING_S = 120.0  # for a started process to take the run's lock
MAX_ATTEMPTS = 5  # of a run that crashes again and again
ACTIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class Revived(NamedTuple):
    """What was found and done about one run."""

    run: UUID
    name: str
    outcome: str  # alive, revived, cancelled
    why: str


class Liveness(NamedTuple):
    """Whether a run is alive and why; `last` is its last sign of life, only if its lock could not be seen."""

    alive: bool
    why: str
    last: datetime | None = None


def revive(older_than_s: float, crashed: bool) -> list[Revived]:
    """Check every active deployed run, and set those without a process to AwaitingRetry.

    older_than_s: for how long a run whose lock cannot be seen must have been silent. crashed: also continue runs that
    Prefect itself saw crash in the last day, up to five attempts each. Raises ServerMissing.
    """
    with prefect_client() as client:
        found, suspects = list[Revived](), dict[UUID, Liveness]()
        for run in _runs(client, ACTIVE):
            first = _liveness(client, run, older_than_s)
            if first.alive:
                found.append(Revived(run.id, run.name, "alive", first.why))
            else:
                suspects[run.id] = first
        if suspects:
            time.sleep(GRACE_S + (HEARTBEAT_S if any(first.last for first in suspects.values()) else 0))
        for run in _runs(client, ACTIVE, list(suspects)) if suspects else ():
            first, second = suspects[run.id], _liveness(client, run, older_than_s)
            if second.alive or second.last != first.last:
                found.append(Revived(run.id, run.name, "alive", second.why))
            else:
                found.append(_end_attempt(client, run, first.why))
        since = now("UTC") - timedelta(days=1)
        for run in _runs(client, [StateType.CRASHED]) if crashed else ():
            if run.end_time is not None and run.end_time > since and run.run_count < MAX_ATTEMPTS:
                found.append(_retry(client, run, (run.state and run.state.message) or "it crashed"))
        return found


def _runs(client: SyncPrefectClient, states: list[StateType], ids: list[UUID] | None = None) -> list[FlowRun]:
    """Read our deployed runs in these states; a flow that another calls in its own process is not deployed."""
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": states}}, "id": {"any_": ids} if ids else None})
    ours, page = DeploymentFilter.model_validate({"tags": {"all_": ["nightjar"]}}), 200
    runs = list[FlowRun]()
    while True:
        more = client.read_flow_runs(flow_run_filter=wanted, deployment_filter=ours, limit=page, offset=len(runs))
        runs += more
        if len(more) < page:
            return runs


def _liveness(client: SyncPrefectClient, run: FlowRun, older_than_s: float) -> Liveness:
    """Tell whether a process executes a run: by its lock, or by its last sign of life."""
    pending = run.state_type == StateType.PENDING
    status, holder = run_status(str(run.id), run.run_count + pending)
    if status == "held":
        return Liveness(True, f"process {holder.pid} on {holder.host} holds its lock" if holder else "its lock is held")
    if status == "gone" and holder is not None:
        return Liveness(False, f"its process {holder.pid} on {holder.host} is gone")
    last: datetime = run.state.timestamp if run.state is not None else now("UTC")
    if not pending:
        heartbeats = EventFilter.model_validate(
            {
                "occurred": {"since": last - timedelta(seconds=1)},
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            }
        )
        last = next((event.occurred for event in client.read_events(heartbeats, limit=1).events), last)
    silent_s = (now("UTC") - last).total_seconds()
    if pending:
        why = f"a worker took it {silent_s:.0f} s ago and no process began"
        return Liveness(silent_s <= max(STARTING_S, older_than_s), why, last)
    return Liveness(silent_s <= older_than_s, f"it sent no heartbeat for {silent_s:.0f} s", last)


def _end_attempt(client: SyncPrefectClient, run: FlowRun, why: str) -> Revived:
    """End a dead attempt with everything it had begun, and let a worker continue the run from the store."""
    if run.state_type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message=f"{why}; it was being cancelled"))
        return Revived(run.id, run.name, "cancelled", why)
    # Not forced: a run that has ended meanwhile stays as it is.
    ended: OrchestrationResult[Any] = client.set_flow_run_state(run.id, Crashed(message=why))
    if ended.status != SetStateStatus.ACCEPT:
        return Revived(run.id, run.name, "alive", "it ended in the meantime")
    _crash_children(client, run.id, why)
    return _retry(client, run, why)


def _retry(client: SyncPrefectClient, run: FlowRun, why: str) -> Revived:
    restart_run(client, run, f"revived by `nightjar flows revive`: {why}")
    return Revived(run.id, run.name, "revived", why)


def _crash_children(client: SyncPrefectClient, run: UUID, why: str) -> None:
    """Mark what a dead process had begun as crashed: its stages, and the flows it called in its own process."""
    active = {"type": {"any_": ACTIVE}}
    active_children = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run]}, "state": active})
    deployed = set[UUID | None]()
    for child in client.read_flow_runs(flow_run_filter=active_children, limit=200):
        if child.deployment_id is not None:  # has a process of its own, which may be alive
            deployed.add(child.parent_task_run_id)
            continue
        client.set_flow_run_state(child.id, Crashed(message=why), force=True)
        _crash_children(client, child.id, why)
    active_tasks = TaskRunFilter.model_validate({"state": active})
    this_run = FlowRunFilter.model_validate({"id": {"any_": [run]}})
    for task in client.read_task_runs(flow_run_filter=this_run, task_run_filter=active_tasks, limit=200):
        if task.id not in deployed:
            client.set_task_run_state(task.id, Crashed(message=why), force=True)
