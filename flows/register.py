"""Put the deployments on the Prefect server, with work pool, queues and limits; again and again, and nothing is lost.

What is not there is created. What is there stays as it is, whoever changed it, until the file, a form or the target's
folder says something new; then that alone is brought in line, and what a person switched off stays off. The version of
a deployment says what it was made of: eight digits of it all, eight of its schedules.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.deployments import Deployment, DeploymentFile, fingerprint
from flows.server import prefect_client
from nightjar.boards.config import read_boards
from nightjar.errors import BadOptions
from nightjar.toolchains.environment import toolchain_targets


class Row(NamedTuple):
    """What became of one thing on the server."""

    kind: str
    name: str
    outcome: str
    detail: str = ""


def register(book: DeploymentFile, reset: bool = False) -> list[Row]:
    """Create what is missing on the server and bring in line what is new in the file.

    reset: as the file says, whatever was changed or switched off on the server. Raises BadOptions for a work pool of
    another type, ServerMissing.
    """
    with prefect_client() as client:
        return [
            *_pool(client, book, reset),
            *_limits(client, book, reset),
            *_deployments(client, book, reset),
            *_notes(client),
        ]


def _pool(client: SyncPrefectClient, book: DeploymentFile, reset: bool) -> Iterator[Row]:
    wanted = book.nightjar.pool
    try:
        found = client.read_work_pool(wanted.name)
        if found.type != wanted.type:
            raise BadOptions(
                f"work pool {wanted.name} is there already and of type {found.type}, and ours is {wanted.type}: give "
                "another name with --pool"
            )
        yield Row("work pool", wanted.name, "unchanged", "paused" if found.is_paused else "")
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(**wanted.model_dump(), base_job_template=template))
        yield Row("work pool", wanted.name, "created")
    created = {}
    for name, queue in sorted(book.queues().items(), key=lambda item: item[1].priority):
        try:
            there = client.read_work_queue_by_name(name, work_pool_name=wanted.name)
            if reset:
                client.update_work_queue(there.id, is_paused=False, **queue.model_dump())
            detail = f"priority {queue.priority if reset else there.priority}"
            yield Row("work queue", name, "reset" if reset else "unchanged", detail)
        except ObjectNotFound:
            made = client.create_work_queue(name, work_pool_name=wanted.name, **queue.model_dump())
            created[made.id] = queue.priority
            yield Row("work queue", name, "created", f"priority {queue.priority}")
    for identity, priority in created.items():  # the server moves others out of a new one's way; equals are meant
        client.update_work_queue(identity, priority=priority)


def _limits(client: SyncPrefectClient, book: DeploymentFile, reset: bool) -> Iterator[Row]:
    limits = book.nightjar.limits
    wanted = {f"toolchain:{target}": limits.toolchain for target in toolchain_targets()}
    wanted |= {f"board:{alias}": limits.board for alias in sorted(read_boards())}
    for name, limit in wanted.items():
        try:
            found = client.read_global_concurrency_limit_by_name(name)
            if reset and found.limit != limit:
                client.request(
                    "PATCH",
                    "/v2/concurrency_limits/{id_or_name}",
                    path_params={"id_or_name": name},
                    json={"limit": limit},
                )
            yield Row("limit", name, "reset" if reset else "unchanged", f"{limit if reset else found.limit} at once")
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
            yield Row("limit", name, "created", f"{limit} at once")


def _deployments(client: SyncPrefectClient, book: DeploymentFile, reset: bool) -> Iterator[Row]:
    for wanted in book.deployments:
        flow = wanted.flow()
        name, fields = f"{flow.name}/{wanted.name}", _fields(wanted, wanted.form(flow))
        timed = [schedule.model_dump() for schedule in wanted.schedules]
        fields["version"] = f"{fingerprint(fields)}.{fingerprint(timed)}"
        try:
            found = client.read_deployment_by_name(name)
        except ObjectNotFound:
            _create(client, client.create_flow_from_name(flow.name), wanted, fields)
            yield Row("deployment", name, "created", _told(client.read_deployment_by_name(name)))
            continue
        outcome = "unchanged"
        if reset or found.version != fields["version"]:
            outcome = "reset" if reset else "updated"
            _update(client, found, wanted, fields, reset)
        yield Row("deployment", name, outcome, _told(client.read_deployment_by_name(name)))


def _fields(wanted: Deployment, form: dict[str, Any]) -> dict[str, Any]:
    """Write what the server keeps of a deployment, but for its schedules."""
    limit = wanted.concurrency_limit
    return {
        "description": wanted.description,
        "tags": wanted.tags,
        "entrypoint": wanted.entrypoint,
        "parameters": wanted.parameters,
        "parameter_openapi_schema": form,
        "enforce_parameter_schema": wanted.enforce_parameter_schema,
        "work_pool_name": wanted.work_pool.name,
        "work_queue_name": wanted.work_pool.work_queue_name,
        "job_variables": wanted.work_pool.job_variables,
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": {"collision_strategy": limit.collision_strategy} if limit else None,
        "pull_steps": [],
    }


def _create(client: SyncPrefectClient, flow_id: Any, wanted: Deployment, fields: dict[str, Any]) -> None:
    options = fields["concurrency_options"]
    client.create_deployment(
        flow_id,
        wanted.name,
        schedules=[
            DeploymentScheduleCreate(schedule=one.parsed(), active=one.active, slug=one.slug)
            for one in wanted.schedules
        ],
        **{**fields, "concurrency_options": ConcurrencyOptions(**options) if options else None},
    )


def _update(
    client: SyncPrefectClient, found: DeploymentResponse, wanted: Deployment, fields: dict[str, Any], reset: bool
) -> None:
    """Bring a deployment in line; what people set of parameters and tags stays, and what is switched off stays off."""
    known = fields["parameter_openapi_schema"]["properties"]
    theirs = {name: value for name, value in found.parameters.items() if name in known}
    kept = {
        "parameters": {**theirs, **fields["parameters"]},
        "tags": [*fields["tags"], *(tag for tag in found.tags if tag not in fields["tags"])],
    }
    said = {**fields, **({"paused": False} if reset else kept)}
    client.request("PATCH", "/deployments/{id}", path_params={"id": found.id}, json=said)
    if not reset and (found.version or "").partition(".")[2] == fields["version"].partition(".")[2]:
        return
    there = {schedule.slug: schedule for schedule in found.schedules}
    for one in wanted.schedules:
        if one.slug in there:
            client.update_deployment_schedule(
                found.id, there[one.slug].id, schedule=one.parsed(), active=one.active if reset else None
            )
        else:
            new = DeploymentScheduleCreate(schedule=one.parsed(), active=one.active, slug=one.slug)
            client.create_deployment_schedules(found.id, [new])


def _told(found: DeploymentResponse) -> str:
    said = [f"queue {found.work_queue_name}"]
    for schedule in found.schedules:
        kind = getattr(schedule.schedule, "cron", "") or type(schedule.schedule).__name__
        zone = getattr(schedule.schedule, "timezone", None) or ""
        said.append(f"{kind} {zone}".strip() + ("" if schedule.active else ", switched off"))
    return ", ".join([*said, *(["paused"] if found.paused else [])])


def _notes(client: SyncPrefectClient) -> Iterator[Row]:
    """Say what of the server's own settings would end a night."""
    settings = client.request("GET", "/admin/settings").json()
    storage = str(settings.get("server", {}).get("concurrency", {}).get("lease_storage", ""))
    if storage.endswith(".memory"):
        yield Row(
            "note",
            "server",
            "leases in memory",
            "a restart ends a running night: PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="
            + storage.replace(".memory", ".filesystem"),
        )
