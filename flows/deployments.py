"""The deployments: those of deployments/prefect.yaml, and a port for every target that it does not name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from nightjar.errors import BadOptions
from nightjar.files import digest
from nightjar.paths import ROOT
from nightjar.plugins.registry import names, plugin
from nightjar.request import PortRequest
from nightjar.toolchains.environment import toolchain_targets

FILE = ROOT / "deployments" / "prefect.yaml"
PWD = "{{ $PWD }}"  # `prefect deploy` replaces it by the current folder


class Section(BaseModel):
    """A part of the file; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Queue(Section):
    """A work queue of the pool."""

    priority: int = Field(ge=1, description="1 is served first")
    concurrency_limit: int | None = Field(None, ge=0, description="runs at once, over all workers")
    description: str = ""


class Pool(Section):
    """The work pool that workers serve."""

    name: str = Field("nightjar", min_length=1)
    type: Literal["process"] = "process"
    description: str = ""


class ServerSettings(Section):
    """What Prefect's own file format lacks."""

    pool: Pool = Pool()
    queues: dict[str, Queue] = {}
    # How many runs may use one toolchain or one board at once, over all workers and flows.
    limits: dict[Literal["toolchain", "board"], NonNegativeInt] = {}


class Schedule(CronSchedule):
    """When a deployment runs; Prefect's class checks the cron line and the time zone."""

    slug: str
    timezone: str | None = "UTC"
    day_or: Literal[True] = Field(True, exclude=True)
    active: bool = True

    def parsed(self) -> CronSchedule:
        """Return the schedule alone."""
        return CronSchedule(cron=self.cron, timezone=self.timezone)


class Limit(Section):
    """How many runs of a deployment may go on at once, and what happens to one more."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class Work(Section):
    """Which queue a deployment's runs wait in, and how a worker starts them."""

    name: str  # of the pool that Prefect itself would use; ours is that of ServerSettings
    work_queue_name: str
    job_variables: dict[str, Any] = {}


class Deployment(Section):
    """One deployment, in Prefect's file format."""

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
        """Import the flow; raises BadOptions if there is none."""
        try:
            return load_flow_from_entrypoint(self.entrypoint, use_placeholder_flow=False)
        except (ImportError, AttributeError, ValueError) as error:
            raise BadOptions(
                f"deployment {self.name} names no flow: {self.entrypoint} ({error}); correct its entrypoint"
            ) from error

    def form_schema(self, flow: Flow[..., Any]) -> dict[str, Any]:
        """Return the schema of its parameters for the form: without unions, and only with what its target supports."""
        schema = flat_schema(parameter_schema(flow).model_dump(exclude_unset=True))
        properties = schema["properties"]
        if (target := self.parameters.get("target")) and "target" in properties:
            properties["target"] |= {"enum": [target], "default": target}
            properties["target"].pop("const", None)
            default = self.parameters.get("precision", properties["precision"]["default"])
            properties["precision"] |= {"enum": precisions(target), "default": default}
        return schema


class DeploymentFile(Section):
    """All deployments with their pool, queues and limits."""

    nightjar: ServerSettings = ServerSettings()
    deployments: list[Deployment]

    def queues(self) -> dict[str, Queue]:
        """Return the queues; those of targets that the file does not name come after all others."""
        last = Queue(priority=1 + max((queue.priority for queue in self.nightjar.queues.values()), default=0))
        return {each.work_pool.work_queue_name: last for each in self.deployments} | self.nightjar.queues


def read_deployments(file: Path = FILE, pool: str | None = None, work_dir: Path = ROOT) -> DeploymentFile:
    """Read the file and add the ports that it does not name.

    pool: a work pool in place of the file's; work_dir: the project's folder on the workers. Raises BadOptions in one
    line for an invalid file, cron line or time zone.
    """
    try:
        text = json.dumps(yaml.safe_load(file.read_text(encoding="utf-8")), default=str)
        content = json.loads(text.replace(PWD, json.dumps(str(work_dir))[1:-1]))
        settings, entries = content.get("nightjar") or {}, content.get("deployments") or []
        definitions = content.get("definitions") or {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadOptions(f"cannot read the deployments in {file} ({reason}): see docs/deployments.md") from error
    named = {each.get("parameters", {}).get("target") for each in entries if isinstance(each, dict)}
    entries += [target_entry(target, definitions) for target in names("targets") if target not in named]
    if pool is not None:
        settings["pool"] = {**settings.get("pool", {}), "name": pool}
    try:
        return DeploymentFile.model_validate({"nightjar": settings, "deployments": entries})
    except ValidationError as error:
        first = error.errors()[0]
        where, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["loc"][-1] in ("cron", "timezone"):
            reason += "; a cron line has five fields, such as 0 2 * * *, and a time zone is one such as Europe/Berlin"
        raise BadOptions(f"{file}, {where}: {reason}; see docs/deployments.md") from error


def target_entry(target: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a target as it would be in the file."""
    module = plugin("targets", target).load()
    summary = (module.__doc__ or "").strip().partition("\n")[0]
    default = PortRequest.model_fields["precision"].default
    precision = {} if default in precisions(target) else {"precision": precisions(target)[0]}
    queue = target if target in toolchain_targets() else "host"
    return {
        **definitions.get("port", {}),
        "name": target,
        "description": f"Port a model to {target}. {summary}",
        "tags": ["nightjar", "port", target],
        "parameters": {"target": target, **precision},
        "work_pool": {**definitions.get("pool", {}), "work_queue_name": queue},
    }


def precisions(target: str) -> list[str]:
    """List the precisions that a target builds."""
    return list(get_args(plugin("targets", target).load().Options.model_fields["precision"].annotation))


def flat_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace `X or null` by an optional X, which a form shows as one field without tabs for its types.

    Prefect's server still accepts null for such a field.
    """
    properties = {}
    for name, field in schema.get("properties", {}).items():
        options = [option for option in field.get("anyOf", ()) if option.get("type") != "null"]
        if len(options) == 1 and field.get("default") is None:
            field = {**options[0], **{key: value for key, value in field.items() if key not in ("anyOf", "default")}}
        elif field.get("default", "") is None:  # a form would fill in null and then reject it
            field = {key: value for key, value in field.items() if key != "default"}
        properties[name] = field
    return {**schema, "properties": properties}


def fingerprint(content: Any) -> str:
    """Return eight digits that change with the content."""
    return digest({"of": json.dumps(content, sort_keys=True, default=str)})[:8]
