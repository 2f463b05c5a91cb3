"""The configured Prefect server: whether it answers, a client for it, and retries after an outage."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry

from nightjar.errors import Broken, ServerMissing
from nightjar.store.run_lock import remove_lock

log = logging.getLogger("nightjar.nightly")

TRIES = 3
OUTAGE_S = 600.0  # how long to wait for a server that went away

Answer = TypeVar("Answer")


@contextlib.contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """Yield a client of the server that PREFECT_API_URL names.

    Raises ServerMissing if none is configured or it does not answer, Broken if it refuses a request.
    """
    url, reason = configured_server()
    if not url:
        raise ServerMissing(
            "no Prefect server is configured: start one with `prefect server start`, and set PREFECT_API_URL, such as "
            "http://127.0.0.1:4200/api"
        )
    if reason:
        raise unreachable(url, reason)
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPStatusError as error:
        answer = " ".join(error.response.text.split())[:200]
        raise Broken(
            f"Prefect server {url} answered {error.response.status_code} to {error.request.url.path} ({answer}): check "
            "that it is Prefect 3.8 and that its database works, then run the same command again"
        ) from error
    except httpx.TransportError as error:
        raise unreachable(url, str(error) or type(error).__name__) from error


def unreachable(url: str, reason: str) -> ServerMissing:
    """Return the error for a server that does not answer."""
    return ServerMissing(
        f"Prefect server {url} does not answer ({reason}): start it, or unset PREFECT_API_URL (where a Prefect profile "
        "sets it: `prefect config unset PREFECT_API_URL`)"
    )


def restart_run(client: SyncPrefectClient, run: FlowRun, why: str) -> None:
    """Let a worker continue the same run: its finished stages are in the store."""
    remove_lock(str(run.id))
    client.set_flow_run_state(run.id, AwaitingRetry(message=why))


def retry_on_outage(call: Callable[[], Answer]) -> Answer:
    """Call the server, again after an outage once the server is back; raises the last try's error."""
    tries = 0
    while True:
        try:
            return call()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            tries += 1
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or tries == TRIES or not _wait_for_server():
                raise


def _wait_for_server() -> bool:
    url, end = PREFECT_API_URL.value(), time.monotonic() + OUTAGE_S
    while url and (reason := server_problem(url)):
        if time.monotonic() > end:
            return False
        log.warning("the Prefect server does not answer (%s): waiting for it", reason)
        time.sleep(5)
    return bool(url)


def server_problem(url: str) -> str:
    """Ask the Prefect server at this API address for its health; return why there is no answer, empty if there is one.

    A server that requires authentication (401, 403) counts as healthy.
    """
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=5, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    healthy = answer.is_success or answer.status_code in (401, 403)
    return "" if healthy else f"HTTP {answer.status_code} {answer.reason_phrase}"


def configured_server() -> tuple[str, str]:
    """Return the configured server's address and why it does not answer; each is empty if there is none."""
    url = PREFECT_API_URL.value() or ""
    return url, server_problem(url) if url else ""
