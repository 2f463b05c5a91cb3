"""What is to be deployed: deployments/prefect.yaml, and a port for every folder in targets/ that it does not name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightjar.errors import BadOptions
from nightjar.files import digest
from nightjar.paths import ROOT
from nightjar.plugins.registry import names, plugin
from nightjar.request import PortRequest
from nightjar.toolchains.environment import toolchain_targets

FILE = ROOT / "deployments" / "prefect.yaml"
HERE = "{{ $PWD }}"  # what `prefect deploy` puts the current folder for


class Section(BaseModel):
    """A part of the file; a word that it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Queue(Section):
    """A work queue of the pool."""

    priority: int = Field(ge=1, description="1 is served first")
    concurrency_limit: int | None = Field(None, ge=0, description="runs at once, over all workers")
    description: str = ""


class Pool(Section):
    """The work pool that workers draw from."""

    name: str = Field("nightjar", min_length=1)
    type: Literal["process"] = "process"
    description: str = ""


class Limits(Section):
    """Who may be at work at once, over all workers and flows."""

    toolchain: int = Field(1, ge=0)
    board: int = Field(1, ge=0)


class Choices(Section):
    """What Prefect's own file has no place for."""

    pool: Pool = Pool()
    queues: dict[str, Queue] = {}
    limits: Limits = Limits()


class Schedule(Section):
    """When a deployment runs by itself."""

    slug: str
    cron: str
    timezone: str = "UTC"
    active: bool = True

    def parsed(self) -> CronSchedule:
        """Make Prefect's schedule; raises ValidationError for a cron line or time zone that is none."""
        return CronSchedule(cron=self.cron, timezone=self.timezone)


class Limit(Section):
    """How many runs of a deployment there are at once, and what becomes of one more."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class Work(Section):
    """Where a deployment's runs are drawn from, and how a worker starts them."""

    name: str
    work_queue_name: str
    job_variables: dict[str, Any] = {}


class Deployment(Section):
    """One deployment, as Prefect's file has it."""

    name: str
    entrypoint: str
    description: str
    tags: list[str]
    parameters: dict[str, Any] = {}
    enforce_parameter_schema: bool = True
    schedules: list[Schedule] = []
    concurrency_limit: Limit | None = None
    work_pool: Work

    def flow(self) -> Flow[..., Any]:
        """Import the flow; raises BadOptions where there is none."""
        try:
            return load_flow_from_entrypoint(self.entrypoint, use_placeholder_flow=False)
        except (ImportError, AttributeError, ValueError) as error:
            raise BadOptions(
                f"deployment {self.name} names no flow: {self.entrypoint} ({error}); correct its entrypoint"
            ) from error

    def form(self, of: Flow[..., Any]) -> dict[str, Any]:
        """Return the schema of its parameters as its form has it: no unions, and only what its target can do."""
        schema = flat(parameter_schema(of).model_dump(exclude_unset=True))
        properties = schema["properties"]
        if (target := self.parameters.get("target")) and "target" in properties:
            properties["target"] |= {"enum": [target], "default": target}
            properties["target"].pop("const", None)
            properties["precision"] |= {"enum": precisions(target)}
            properties["precision"] |= {"default": self.parameters.get("precision", properties["precision"]["default"])}
        return schema


class DeploymentFile(Section):
    """Everything that is to be deployed."""

    nightjar: Choices = Choices()
    deployments: list[Deployment]

    def queues(self) -> dict[str, Queue]:
        """Return the queues, with those of targets that the file does not know after all others."""
        last = max((queue.priority for queue in self.nightjar.queues.values()), default=0)
        found = dict(self.nightjar.queues)
        for one in self.deployments:
            found.setdefault(one.work_pool.work_queue_name, Queue(priority=last + 1))
        return found


def read_deployments(file: Path = FILE, pool: str | None = None, work_dir: Path = ROOT) -> DeploymentFile:
    """Read the file and add the ports that it does not name.

    pool: another work pool than the file's; work_dir: the project's folder on the workers. Raises BadOptions in one
    line for a file that is not one, and for a cron line or a time zone that is none.
    """
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        known = {name: said.get(name) for name in ("nightjar", "deployments", "definitions")}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadOptions(f"cannot read the deployments in {file} ({reason}): see docs/deployments.md") from error
    definitions = known.pop("definitions") or {}
    given = known["deployments"] or []
    named = {one.get("parameters", {}).get("target") for one in given if isinstance(one, dict)}
    given += [target_entry(target, definitions) for target in names("targets") if target not in named]
    known["nightjar"] = known["nightjar"] or {}
    if pool is not None:
        known["nightjar"]["pool"] = {**known["nightjar"].get("pool", {}), "name": pool}
    try:
        book = DeploymentFile.model_validate(_placed(known, str(work_dir)))
        for one in book.deployments:
            for number, schedule in enumerate(one.schedules):
                _checked(one, number, schedule)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadOptions(f"{file}, {where}: {first['msg']}; see docs/deployments.md") from error
    name = book.nightjar.pool.name
    moved = [
        one.model_copy(update={"work_pool": one.work_pool.model_copy(update={"name": name})})
        for one in book.deployments
    ]
    return book.model_copy(update={"deployments": moved})


def target_entry(target: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Write the entry of a target, as the file would have it."""
    module = plugin("targets", target).load()
    said = (module.__doc__ or "").strip().partition("\n")[0]
    default = PortRequest.model_fields["precision"].default
    choice = {} if default in precisions(target) else {"precision": precisions(target)[0]}
    queue = target if target in toolchain_targets() else "host"
    return {
        **definitions.get("port", {}),
        "name": target,
        "description": f"Port a model to {target}. {said}",
        "tags": ["nightjar", "port", target],
        "parameters": {"target": target, **choice},
        "work_pool": {**definitions.get("pool", {}), "work_queue_name": queue},
    }


def precisions(target: str) -> list[str]:
    """List the precisions that a target builds."""
    return list(get_args(plugin("targets", target).load().Options.model_fields["precision"].annotation))


def flat(schema: dict[str, Any]) -> dict[str, Any]:
    """Write `X or nothing` as X that may be left out: a form shows a field then, and no tabs of types.

    Prefect's server takes null for such a field all the same.
    """
    properties = {}
    for name, field in schema.get("properties", {}).items():
        options = [option for option in field.get("anyOf", ()) if option.get("type") != "null"]
        if len(options) == 1 and field.get("default") is None:
            field = {**options[0], **{key: value for key, value in field.items() if key not in ("anyOf", "default")}}
        elif field.get("default", "") is None:  # a form would fill it in, and its own check refuse it
            field = {key: value for key, value in field.items() if key != "default"}
        properties[name] = field
    return {**schema, "properties": properties}


def fingerprint(of: Any) -> str:
    """Return eight digits that change with the content."""
    return digest({"of": json.dumps(of, sort_keys=True, default=str)})[:8]


def _placed(said: Any, work_dir: str) -> Any:
    """Put the project's folder where the file has `{{ $PWD }}`."""
    if isinstance(said, dict):
        return {name: _placed(value, work_dir) for name, value in said.items()}
    if isinstance(said, list):
        return [_placed(value, work_dir) for value in said]
    return said.replace(HERE, work_dir) if isinstance(said, str) else said


def _checked(one: Deployment, number: int, schedule: Schedule) -> None:
    try:
        schedule.parsed()
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadOptions(
            f"deployment {one.name}, schedule {number + 1}: {reason}; a cron line has five fields, such as 0 2 * * *, "
            "and a time zone is one such as Europe/Berlin"
        ) from error
