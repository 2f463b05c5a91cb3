"""Register the deployments on the Prefect server, with work pool, queues and limits; safe to repeat at any time.

Missing things are created. Existing things keep manual changes until the file, a form or the target's folder changes;
then only that is updated, and what a person switched off stays off. A deployment's version records what it was made of:
eight digits of everything, eight of its schedules.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.deployments import Deployment, DeploymentFile, Schedule, fingerprint
from flows.server import prefect_client
from nightjar.boards.config import read_boards
from nightjar.errors import BadOptions
from nightjar.toolchains.environment import toolchain_targets

# Fields of a deployment that have the same name and form on the server.
SAME_ON_SERVER = {"description", "tags", "entrypoint", "parameters", "enforce_parameter_schema"}


class Row(NamedTuple):
    """What was done about one thing on the server."""

    kind: str
    name: str
    outcome: str
    detail: str = ""


def register(file: DeploymentFile, reset: bool = False) -> list[Row]:
    """Create what is missing on the server and update what changed in the file.

    reset: restore everything as in the file, including what was changed or switched off on the server. Raises
    BadOptions for a work pool of another type, ServerMissing.
    """
    with prefect_client() as client:
        return [
            *_pool(client, file),
            *_queues(client, file, reset),
            *_limits(client, file, reset),
            *_deployments(client, file, reset),
            *_notes(client),
        ]


def _pool(client: SyncPrefectClient, file: DeploymentFile) -> Iterator[Row]:
    wanted = file.nightjar.pool
    try:
        found = client.read_work_pool(wanted.name)
        if found.type != wanted.type:
            raise BadOptions(
                f"work pool {wanted.name} exists and has type {found.type}, not {wanted.type}: give another name with "
                "--pool"
            )
        yield Row("work pool", wanted.name, "unchanged", "paused" if found.is_paused else "")
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(**wanted.model_dump(), base_job_template=template))
        yield Row("work pool", wanted.name, "created")


def _queues(client: SyncPrefectClient, file: DeploymentFile, reset: bool) -> Iterator[Row]:
    pool, created = file.nightjar.pool.name, {}
    for name, queue in sorted(file.queues().items(), key=lambda item: item[1].priority):
        try:
            found = client.read_work_queue_by_name(name, work_pool_name=pool)
            if reset:
                client.update_work_queue(found.id, is_paused=False, **queue.model_dump())
            priority = queue.priority if reset else found.priority
            yield Row("work queue", name, "reset" if reset else "unchanged", f"priority {priority}")
        except ObjectNotFound:
            new = client.create_work_queue(name, work_pool_name=pool, **queue.model_dump())
            created[new.id] = queue.priority
            yield Row("work queue", name, "created", f"priority {queue.priority}")
    for queue_id, priority in created.items():  # the server moves others away from a new one's; equal ones are intended
        client.update_work_queue(queue_id, priority=priority)


def _limits(client: SyncPrefectClient, file: DeploymentFile, reset: bool) -> Iterator[Row]:
    limits = file.nightjar.limits
    wanted = {f"toolchain:{target}": limits.get("toolchain", 1) for target in toolchain_targets()}
    wanted |= {f"board:{alias}": limits.get("board", 1) for alias in sorted(read_boards())}
    for name, limit in wanted.items():
        try:
            found = client.read_global_concurrency_limit_by_name(name)
            if reset and found.limit != limit:
                client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=limit))
            yield Row("limit", name, "reset" if reset else "unchanged", f"{limit if reset else found.limit} at once")
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
            yield Row("limit", name, "created", f"{limit} at once")


def _deployments(client: SyncPrefectClient, file: DeploymentFile, reset: bool) -> Iterator[Row]:
    for wanted in file.deployments:
        flow = wanted.flow()
        name, limit = f"{flow.name}/{wanted.name}", wanted.concurrency_limit
        fields = wanted.model_dump(include=SAME_ON_SERVER) | {
            "parameter_openapi_schema": wanted.form_schema(flow),
            "work_pool_name": file.nightjar.pool.name,
            "work_queue_name": wanted.work_pool.work_queue_name,
            "job_variables": wanted.work_pool.job_variables,
            "concurrency_limit": limit.limit if limit else None,
            "concurrency_options": {"collision_strategy": limit.collision_strategy} if limit else None,
            "pull_steps": [],
        }
        schedules = [schedule.model_dump() for schedule in wanted.schedules]
        fields["version"] = f"{fingerprint(fields)}.{fingerprint(schedules)}"
        outcome = "unchanged"
        try:
            found = client.read_deployment_by_name(name)
        except ObjectNotFound:
            outcome = "created"
            new = [_new_schedule(schedule).model_dump(mode="json") for schedule in wanted.schedules]
            made_of = {**fields, "name": wanted.name, "schedules": new}
            flow_id = str(client.create_flow_from_name(flow.name))
            client.request("POST", "/deployments/", json=made_of | {"flow_id": flow_id})
        else:
            if reset or found.version != fields["version"]:
                outcome = "reset" if reset else "updated"
                _update(client, found, wanted, fields, reset)
        yield Row("deployment", name, outcome, _detail(client.read_deployment_by_name(name)))


def _new_schedule(schedule: Schedule) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=schedule.parsed(), active=schedule.active, slug=schedule.slug)


def _update(
    client: SyncPrefectClient, found: DeploymentResponse, wanted: Deployment, fields: dict[str, Any], reset: bool
) -> None:
    """Update a deployment; without `reset`, manual parameters and tags stay, and what is switched off stays off."""
    known = fields["parameter_openapi_schema"]["properties"]
    manual = {name: value for name, value in found.parameters.items() if name in known}
    merged = {
        "parameters": {**manual, **fields["parameters"]},
        "tags": [*fields["tags"], *(tag for tag in found.tags if tag not in fields["tags"])],
    }
    update = {**fields, **({"paused": False} if reset else merged)}
    client.request("PATCH", "/deployments/{id}", path_params={"id": found.id}, json=update)
    if not reset and (found.version or "").partition(".")[2] == fields["version"].partition(".")[2]:
        return
    existing = {schedule.slug: schedule for schedule in found.schedules}
    for each in wanted.schedules:
        if each.slug in existing:
            client.update_deployment_schedule(
                found.id, existing[each.slug].id, schedule=each.parsed(), active=each.active if reset else None
            )
        else:
            client.create_deployment_schedules(found.id, [_new_schedule(each)])


def _detail(found: DeploymentResponse) -> str:
    parts = [f"queue {found.work_queue_name}"]
    for schedule in found.schedules:
        cron = getattr(schedule.schedule, "cron", "") or type(schedule.schedule).__name__
        zone = getattr(schedule.schedule, "timezone", None) or ""
        parts.append(f"{cron} {zone}".strip() + ("" if schedule.active else ", switched off"))
    return ", ".join([*parts, *(["paused"] if found.paused else [])])


def _notes(client: SyncPrefectClient) -> Iterator[Row]:
    """Warn about a server setting that would end a night."""
    settings = client.request("GET", "/admin/settings").json()
    storage = str(settings.get("server", {}).get("concurrency", {}).get("lease_storage", ""))
    if storage.endswith(".memory"):
        setting = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=" + storage.replace(".memory", ".filesystem")
        yield Row("note", "server", "leases in memory", f"a restart of the server ends a running night: set {setting}")
