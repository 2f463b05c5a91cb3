"""Start a flow from the command line: with a server when one is configured, and without Prefect's temporary one."""

import gc
from typing import Any, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.context import SettingsContext, get_settings_context
from prefect.settings import PREFECT_API_URL

from flows.server import server_problem
from nightjar.errors import ServerMissing
from nightjar.progress import Screen
from nightjar.store.artifact import Store
from nightjar.store.remote import open_store
from tasks.stage import Run, running


def run_flow(
    flow: Flow[..., Any], request: Any, screen: Screen, refresh: tuple[str, ...] = (), plan: bool = False
) -> tuple[dict[str, Any], Run]:
    """Run a flow on the default store, telling `screen` of each stage; return its results and the run.

    Without PREFECT_API_URL the flow's function is called as it is: Prefect would start a temporary server
    first, 13 silent seconds for a run that nobody can look at afterwards. With it, raises ServerMissing when the
    server does not answer.
    """
    url = PREFECT_API_URL.value()
    served = bool(url) and not plan
    if served and (reason := server_problem(url)):
        raise ServerMissing(f"Prefect server {url} does not answer ({reason}): start it, or unset PREFECT_API_URL")
    store: Store = open_store()
    wait_s = getattr(request, "board_wait", None)
    run = Run(store, frozenset(refresh), plan, wait_s, on_progress=screen.progress, on_outcome=screen.outcome)
    gc.freeze()  # what is imported stays: neither a collection nor the end of this process has to look at it
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
    with running(run), screen:
        if not served:
            return cast("dict[str, Any]", flow.fn(request)), run
        with _without_heartbeat():
            ended: State[Any] = flow(request, return_state=True)  # type: ignore[assignment]
    # A flow may end as Failed and have results all the same: a night of which one cell failed.
    results = ended.result(raise_on_failure=False)
    if isinstance(results, BaseException):
        raise results
    return cast("dict[str, Any]", results), run


def _without_heartbeat() -> SettingsContext:
    """Make Prefect's settings without its heartbeat, whose thread ends with a nap of up to a second.

    It tells an automation that a flow run is alive; who runs one from here sees it stop.
    """
    own = get_settings_context()
    flows = own.settings.flows.model_copy(update={"heartbeat_frequency": None})
    return SettingsContext(profile=own.profile, settings=own.settings.model_copy(update={"flows": flows}))
