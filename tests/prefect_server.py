"""A real Prefect server of its own, on a free port: for tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

READY_S = 120.0


@contextmanager
def prefect_server(home: Path, database: str | None = None) -> Iterator[str]:
    """Start a server on SQLite in `home`, or on the database of a URL; give its API address, and end it afterwards.

    Raises RuntimeError with the end of its log where it does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}),
    }
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url, end = f"http://127.0.0.1:{port}/api", time.monotonic() + READY_S
    try:
        while not _answers(url):
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"the server did not start: {(home / 'server.log').read_text()[-2000:]}")
            time.sleep(0.25)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).is_success
    except httpx.HTTPError:
        return False
