"""The form of a port: `port/<target>`, one deployment per target (deployments/prefect.yaml).

It offers models and targets as dropdowns. A dropdown cannot hold the name of a user's checkpoint, so the form has the
field `label` beside those of PortRequest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field, WithJsonSchema

from flows.form import make_form, make_request
from flows.port import port as graph
from nightjar.errors import BadOptions
from nightjar.plugins.registry import names, plugin
from nightjar.plugins.resolve import shipped_models
from nightjar.request import PortRequest

# These fields come first; the rest follows in the request's order.
FIRST = ("model", "target", "precision", "board", "decoder", "window", "long", "language", "test_set", "limit")


class PortForm(PortRequest):
    """Port one model to one target, and measure whether it still recognises speech."""

    label: str | None = Field(
        None, description="name of your checkpoint in reports; default: the name of its file or folder"
    )


def known_models() -> list[str]:
    """List the models that have a name: the shipped ones, then those that each family downloads."""
    fetched = [name for family in names("models") for name in plugin("models", family).load().NAMES]
    return list(dict.fromkeys([*shipped_models(), *fetched]))


def port_request(given: Mapping[str, Any]) -> PortRequest:
    """Make the request from the values of a form; raises BadOptions before anything runs."""
    label = given.get("label")
    if label and not given.get("checkpoint"):
        raise BadOptions(f"label {label} names a checkpoint of your own: give its path as checkpoint, or no label")
    request: PortRequest = make_request(PortRequest, {**given, "model": model_label(given), "label": None})
    return request


def model_label(given: Mapping[str, Any]) -> str:
    """Return the name of a form's model: of the user's checkpoint, where the form has one."""
    own = given.get("checkpoint")
    return str((given.get("label") or Path(own).stem) if own else given["model"])


def _run_name() -> str:
    given = flow_run.parameters
    return "-".join(filter(None, ("port", model_label(given), given["target"], given["precision"], given["board"])))


def form_values(request: PortRequest) -> dict[str, Any]:
    """Return the values of a form that make this request."""
    values = request.model_dump(mode="json", exclude_none=True)
    if request.checkpoint is not None:
        values["label"] = values.pop("model")
    if request.host_embedding is not None:
        values["host_embedding"] = "yes" if request.host_embedding else "no"
    return values


def run_state(results: Mapping[str, Any]) -> State[Any]:
    """Return the state of a finished port's flow run: FAIL is a failed run, and the verdict comes first."""
    low, high = results["interval"]
    verdict = (
        f"{results['verdict']}: ΔWER {results['delta_wer']:+.2f} points [{low:+.2f}, {high:+.2f}], "
        f"{results['clips']} clips, tier {results['tier']}"
    )
    gates = [gate["sentence"] for gate in results["gates"] if gate["outcome"] != "PASS"]
    return (Failed if results["verdict"] == "FAIL" else Completed)(message="; ".join([verdict, *gates]))


port = make_form(
    "port",
    PortForm,
    lambda given: run_state(graph.fn(port_request(given))),
    __name__,
    _run_name,
    first=FIRST,
    kinds={
        "model": Literal[tuple(known_models())],
        "target": Literal[tuple(names("targets"))],
        # A switch has no third position for "as the recipe says".
        "host_embedding": Annotated[bool | None, WithJsonSchema({"type": "string", "enum": ["yes", "no"]})],
    },
)
