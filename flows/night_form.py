"""The form of a night: `nightly/default` (deployments/prefect.yaml)."""

from flows.form import make_form, make_request
from flows.nightly import night_run_name
from flows.nightly import nightly as night
from nightjar.nightly.config import NightRequest

nightly = make_form(
    "nightly", NightRequest, lambda given: night.fn(make_request(NightRequest, given)), __name__, night_run_name
)
