"""The form of a night: `nightly/default` (deployments/prefect.yaml)."""

from prefect.context import FlowRunContext

from flows.form import make_form, make_request
from flows.nightly import night_name
from flows.nightly import nightly as night
from nightjar.nightly.config import NightRequest


def _run_name() -> str:
    context = FlowRunContext.get()
    values = (context.parameters or {}) if context is not None else {}
    return f"night-{values.get('night') or night_name()}"


nightly = make_form(
    "nightly", NightRequest, lambda given: night.fn(make_request(NightRequest, given)), __name__, _run_name
)
