"""The form of a port: `port/<target>`, one deployment per target (deployments/prefect.yaml).

Beyond PortRequest it has dropdowns of the models and targets there are, and `label`, since a dropdown cannot hold the
name of somebody's own checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed
from pydantic import WithJsonSchema

from flows.form import make_form, make_request
from flows.port import port as graph
from nightjar.errors import BadOptions
from nightjar.plugins.registry import names, plugin
from nightjar.plugins.resolve import shipped_models
from nightjar.request import PortRequest

# What people choose first comes first; the rest follows in the request's order.
FIRST = ("model", "target", "precision", "board", "decoder", "window", "long", "language", "test_set", "limit")


def known_models() -> list[str]:
    """List what can be ported by name: the shipped models, then those that each family fetches."""
    fetched = [name for family in names("models") for name in plugin("models", family).load().NAMES]
    return list(dict.fromkeys([*shipped_models(), *fetched]))


def requested(given: Mapping[str, Any]) -> PortRequest:
    """Make the request of a filled-in form; raises BadOptions in one line, before anything runs."""
    asked, checkpoint, label = dict(given), given.get("checkpoint"), given.get("label")
    if label and not checkpoint:
        raise BadOptions(f"label {label} names a checkpoint of your own: give its path as checkpoint, or no label")
    asked.pop("label", None)
    asked["model"] = named(given)
    request: PortRequest = make_request(PortRequest, asked)
    return request


def named(given: Mapping[str, Any]) -> str:
    """Say what a filled-in form is about: its own model, where it has one."""
    own = given.get("checkpoint")
    return str((given.get("label") or Path(own).stem) if own else given["model"])


def _run_name() -> str:
    context = FlowRunContext.get()
    given = (context.parameters or {}) if context is not None else {}
    return "-".join(filter(None, ("port", named(given), given["target"], given["precision"], given["board"])))


def filled(request: PortRequest) -> dict[str, Any]:
    """Fill in the form as a request says: the other way round."""
    answers = request.model_dump(mode="json", exclude_none=True)
    if request.checkpoint is not None:
        answers["label"] = answers.pop("model")
    if request.host_embedding is not None:
        answers["host_embedding"] = "yes" if request.host_embedding else "no"
    return answers


def ended(results: Mapping[str, Any]) -> State[Any]:
    """Make a finished port the state that people see: a FAIL is red, and the verdict comes first."""
    low, high = results["interval"]
    said = (
        f"{results['verdict']}: ΔWER {results['delta_wer']:+.2f} points [{low:+.2f}, {high:+.2f}], "
        f"{results['clips']} clips, tier {results['tier']}"
    )
    against = [gate["sentence"] for gate in results["gates"] if gate["outcome"] != "PASS"]
    return (Failed if results["verdict"] == "FAIL" else Completed)(message="; ".join([said, *against]))


port = make_form(
    "port",
    PortRequest,
    lambda given: ended(graph.fn(requested(given))),
    __name__,
    _run_name,
    first=FIRST,
    kinds={
        "model": Literal[tuple(known_models())],
        "target": Literal[tuple(names("targets"))],
        # A switch has no third position for "as the recipe says".
        "host_embedding": Annotated[bool | None, WithJsonSchema({"type": "string", "enum": ["yes", "no"]})],
    },
    extra={"label": "what reports call a checkpoint of your own; default: the name of its file or folder"},
)
