"""Start a flow from the command line: with a server when one is configured, and without Prefect's temporary one."""

import gc
from typing import Any, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.context import SettingsContext, get_settings_context

from flows.server import configured_server, unreachable
from nightjar.progress import Screen
from nightjar.store.remote import open_store
from tasks.stage import Run, running


def run_flow(flow: Flow[..., Any], request: Any, screen: Screen, plan: bool = False) -> tuple[dict[str, Any], Run]:
    """Run a flow on the default store and report each stage to `screen`; return its results and the run.

    Without PREFECT_API_URL the flow's function is called directly: Prefect would first start a temporary server, 13
    silent seconds for a run that nobody can inspect afterwards. With it, raises ServerMissing when the server does not
    answer.
    """
    url, reason = ("", "") if plan else configured_server()
    if reason:
        raise unreachable(url, reason)
    refresh, wait_s = frozenset(getattr(request, "refresh", ())), getattr(request, "board_wait", None)
    run = Run(open_store(), refresh, plan, wait_s, on_progress=screen.progress, on_outcome=screen.outcome)
    gc.freeze()  # imported objects stay for good: no collection has to visit them
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
    with running(run), screen:
        if not url:
            return cast("dict[str, Any]", flow.fn(request)), run
        with _without_heartbeat():
            ended: State[Any] = flow(request, return_state=True)  # type: ignore[assignment]
    # A flow that ends as Failed may have results: a night of which one cell failed.
    results = ended.result(raise_on_failure=False)
    if isinstance(results, BaseException):
        raise results
    return cast("dict[str, Any]", results), run


def _without_heartbeat() -> SettingsContext:
    """Make Prefect's settings without its heartbeat, whose thread takes up to a second to end; a person sees a run."""
    own = get_settings_context()
    flows = own.settings.flows.model_copy(update={"heartbeat_frequency": None})
    return SettingsContext(profile=own.profile, settings=own.settings.model_copy(update={"flows": flows}))
