"""The Prefect server that is configured: there, or said in one line."""

import contextlib
from collections.abc import Iterator

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from nightjar.doctor import server_answers
from nightjar.errors import Broken, ServerMissing


@contextlib.contextmanager
def asking() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that PREFECT_API_URL names.

    Raises ServerMissing where none is configured or it does not answer, Broken where it refuses what it is asked.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ServerMissing(
            "no Prefect server is configured: start one with `prefect server start`, and set PREFECT_API_URL, such as "
            "http://127.0.0.1:4200/api"
        )
    if reason := server_answers(url):
        raise ServerMissing(f"Prefect server {url} does not answer ({reason}): start it, or unset PREFECT_API_URL")
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPStatusError as error:
        said = " ".join(error.response.text.split())[:200]
        raise Broken(
            f"Prefect server {url} answered {error.response.status_code} to {error.request.url.path} ({said}): is it "
            "Prefect 3.8, and its database well? Then run the same command again"
        ) from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise ServerMissing(
            f"Prefect server {url} does not answer ({reason}): start it, or unset PREFECT_API_URL"
        ) from error
