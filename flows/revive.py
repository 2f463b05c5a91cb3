"""Find deployed runs that nobody is at work on any more, and let a worker go on with them.

A worker that is killed, or loses its machine, cannot tell the server: its runs stay `Running`. The run's lock
(nightjar/store/run_lock.py) says at once whether its process is alive. Where the lock cannot be seen, Prefect's
heartbeat of every 30 s does,
 and then only a run that is silent for long is taken for an orphan, after one more beat: a server that was
away itself has heard nobody. What is alive is never touched.
"""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.types._datetime import now

from flows.server import prefect_client
from nightjar.store.run_lock import remove_lock, run_status

log = logging.getLogger("nightjar.revive")

BEAT_S = 30.0  # deployments/prefect.yaml: PREFECT_FLOWS_HEARTBEAT_FREQUENCY; Prefect takes no less
GRACE_S = 5.0  # in which a worker that is there says of its own accord that a run's process has died
STARTING_S = 120.0  # in which a process that was started may take the run's lock
ATTEMPTS = 5  # of a run that crashes again and again
TAG = "nightjar"
AT_WORK = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class Revived(NamedTuple):
    """What was found of one run."""

    run: UUID
    name: str
    outcome: str  # alive, revived, cancelled
    why: str


class Look(NamedTuple):
    """What one look at a run saw; `last`, when it was last heard of, only where its lock could not be seen."""

    alive: bool
    said: str
    last: datetime | None = None


def revive(
    older_than_s: float = 5 * BEAT_S, crashed: bool = False, wait: Callable[[float], None] = time.sleep
) -> list[Revived]:
    """Look at every deployed run that is at work, and set those that nobody works on to AwaitingRetry.

    older_than_s: how long a run whose lock cannot be seen must have been silent. crashed: let also those go on that
    Prefect itself saw crash in the last day, up to five attempts each. Raises ServerMissing.
    """
    with prefect_client() as client:
        looks = {run.id: (run, _look(client, run, older_than_s)) for run in _runs(client, AT_WORK)}
        found = [Revived(run.id, run.name, "alive", look.said) for run, look in looks.values() if look.alive]
        suspects = {run.id: look for run, look in looks.values() if not look.alive}
        if suspects:
            wait(GRACE_S + (BEAT_S if any(look.last for look in suspects.values()) else 0))
        for run in _runs(client, AT_WORK, list(suspects)) if suspects else ():
            first, second = suspects[run.id], _look(client, run, older_than_s)
            if second.alive or second.last != first.last:
                found.append(Revived(run.id, run.name, "alive", second.said))
            else:
                found.append(_end(client, run, first.said))
        if crashed:
            found += _crashed(client)
        return found


def _runs(client: SyncPrefectClient, states: list[StateType], ids: list[UUID] | None = None) -> Iterator[FlowRun]:
    """Yield deployed runs of ours in one of these states; a flow that another calls in its own process is none."""
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
        id=FlowRunFilterId(any_=ids) if ids is not None else None,
    )
    ours, page = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), 200
    runs = list[FlowRun]()
    while (
        len(some := client.read_flow_runs(flow_run_filter=wanted, deployment_filter=ours, limit=page, offset=len(runs)))
        == page
    ):
        runs += some
    yield from (*runs, *some)


def _look(client: SyncPrefectClient, run: FlowRun, older_than_s: float) -> Look:
    """Say whether somebody is at work on a run: by its lock, or by what was last heard of it."""
    pending = run.state_type == StateType.PENDING
    seen, attempt = run_status(str(run.id), run.run_count + pending)
    if seen == "held":
        return Look(True, f"process {attempt.pid} on {attempt.host} holds its lock" if attempt else "its lock is held")
    if seen == "gone" and attempt is not None:
        return Look(False, f"its process {attempt.pid} on {attempt.host} is gone")
    since = run.state.timestamp if run.state is not None else now("UTC")
    last = since if pending else _last_beat(client, run.id, since)
    silent_s = (now("UTC") - last).total_seconds()
    if pending:
        said = f"a worker took it {silent_s:.0f} s ago and no process began"
        return Look(silent_s <= max(STARTING_S, older_than_s), said, last)
    return Look(silent_s <= older_than_s, f"nothing was heard of it for {silent_s:.0f} s", last)


def _last_beat(client: SyncPrefectClient, run: UUID, since: datetime) -> datetime:
    beats = EventFilter(
        occurred=EventOccurredFilter(since=since - timedelta(seconds=1)),
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]),
    )
    page = client.read_events(beats, limit=1)
    return page.events[0].occurred if page.events else since


def _end(client: SyncPrefectClient, run: FlowRun, why: str) -> Revived:
    """End the attempt that is no more, with what it had begun, and let the run go on from the store."""
    if run.state_type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message=f"{why}; it was to be cancelled anyway"))
        return Revived(run.id, run.name, "cancelled", why)
    # Not forced: a run that has ended meanwhile stays as it is.
    ended: OrchestrationResult[Any] = client.set_flow_run_state(run.id, Crashed(message=why))
    if ended.status != SetStateStatus.ACCEPT:
        return Revived(run.id, run.name, "alive", "it ended in the meantime")
    _end_inside(client, run.id, why)
    return _retry(client, run, why)


def _retry(client: SyncPrefectClient, run: FlowRun, why: str) -> Revived:
    remove_lock(str(run.id))
    client.set_flow_run_state(run.id, AwaitingRetry(message=f"revived by `nightjar flows revive`: {why}"))
    return Revived(run.id, run.name, "revived", why)


def _end_inside(client: SyncPrefectClient, run: UUID, why: str) -> None:
    """Mark what a dead process had begun as crashed: its stages, and the flows it called in its own process."""
    inside = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=AT_WORK)),
    )
    deployed = set[UUID | None]()
    for child in client.read_flow_runs(flow_run_filter=inside, limit=200):
        if child.deployment_id is not None:  # a process of its own, which may well be alive
            deployed.add(child.parent_task_run_id)
            continue
        client.set_flow_run_state(child.id, Crashed(message=why), force=True)
        _end_inside(client, child.id, why)
    begun = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=AT_WORK)))
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    for task in client.read_task_runs(flow_run_filter=only, task_run_filter=begun, limit=200):
        if task.id not in deployed:
            client.set_task_run_state(task.id, Crashed(message=why), force=True)


def _crashed(client: SyncPrefectClient) -> Iterator[Revived]:
    since = now("UTC") - timedelta(days=1)
    for run in _runs(client, [StateType.CRASHED]):
        if run.end_time is not None and run.end_time > since and run.run_count < ATTEMPTS:
            yield _retry(client, run, run.state.message or "it crashed" if run.state is not None else "it crashed")
