"""The Prefect server that is configured: there, or said in one line."""

import contextlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from nightjar.errors import Broken, ServerMissing

log = logging.getLogger("nightjar.nightly")

TRIES = 3
BACK_S = 600.0  # in which a server that went away is waited for

Answer = TypeVar("Answer")


@contextlib.contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that PREFECT_API_URL names.

    Raises ServerMissing where none is configured or it does not answer, Broken where it refuses what it is asked.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ServerMissing(
            "no Prefect server is configured: start one with `prefect server start`, and set PREFECT_API_URL, such as "
            "http://127.0.0.1:4200/api"
        )
    if reason := server_problem(url):
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


def retry_on_outage(call: Callable[[], Answer]) -> Answer:
    """Do what needs the server, and again once it is back if it went away meanwhile; raises what the last try did."""
    tries = 0
    while True:
        try:
            return call()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            tries += 1
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or tries == TRIES or not _is_back():
                raise


def _is_back() -> bool:
    url, end = PREFECT_API_URL.value(), time.monotonic() + BACK_S
    while url and (reason := server_problem(url)):
        if time.monotonic() > end:
            return False
        log.warning("the Prefect server does not answer (%s): waiting for it", reason)
        time.sleep(5)
    return bool(url)


def server_problem(url: str) -> str:
    """Ask the Prefect server at this API address for its health; return why there is no answer, or "" when there is.

    A server that wants to know who asks (401, 403) is there.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return "" if error.code in (401, 403) else str(error)
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, HTTPException, ValueError) as error:  # silence after the connection; no HTTP; no address
        return str(error) or type(error).__name__


def configured_server() -> tuple[str, str]:
    """Return the address of the Prefect server that is configured and why it does not answer, each empty for none."""
    url = PREFECT_API_URL.value() or ""
    return url, server_problem(url) if url else ""
