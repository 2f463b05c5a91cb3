"""Start a flow from the command line: with a server when one is configured, and without Prefect's temporary one."""

from typing import Any, cast

from prefect import Flow
from prefect.settings import PREFECT_API_URL

from nightjar.artifact import Store
from nightjar.doctor import server_answers
from nightjar.errors import ServerMissing
from nightjar.show import Screen
from tasks.stage import Run, default_store, running


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
    if served and (reason := server_answers(url)):
        raise ServerMissing(f"Prefect server {url} does not answer ({reason}): start it, or unset PREFECT_API_URL")
    store: Store = default_store()
    wait_s = getattr(request, "board_wait", None)
    run = Run(store, frozenset(refresh), plan, wait_s, show=screen.progress, tell=screen.outcome)
    with running(run), screen:
        results = flow(request) if served else flow.fn(request)
    return cast("dict[str, Any]", results), run
