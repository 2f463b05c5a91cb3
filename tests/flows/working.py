"""A Prefect worker in a process of its own, and what becomes of the runs that it draws."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.flows.conftest import ROOT

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Worker:
    """`prefect worker start` on a pool, with a store; without --limit (docs/decisions/012-deployments.md)."""

    def __init__(self, server: str, pool: str, store: Path, log: Path, **environment: str) -> None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        self.log, self.url = log, server
        with log.open("w") as written:
            self.process = subprocess.Popen(
                [*command, "--name", log.stem],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PREFECT_API_URL": server,
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    "NIGHTJAR_STORE": str(store),
                    **environment,
                },
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the worker and what it started, as Ctrl-C does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL for the worker and the processes of its runs, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Runs:
    """Start deployed runs on a server, and watch them."""

    def __init__(self, server: str) -> None:
        self.server = server

    def ask(self, path: str, **body: Any) -> Any:
        """Ask the API, GET without a body, again while it says that it is busy: SQLite has one writer."""
        for _ in range(60):
            method = "POST" if body else "GET"
            answer = httpx.request(method, f"{self.server}/{path}", json=body or None, timeout=60)
            if answer.status_code != 503:
                break
            time.sleep(1)
        assert answer.is_success, answer.text
        return answer.json()

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run from a deployment's form; return its id."""
        deployment = self.ask(f"deployments/name/{name}")["id"]
        return str(self.ask(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"])

    def read(self, run: str) -> dict[str, Any]:
        """Read a run."""
        found: dict[str, Any] = self.ask(f"flow_runs/{run}")
        return found

    def ended(self, run: str, timeout_s: float = 300) -> dict[str, Any]:
        """Wait for a run to end, and read it."""
        end = time.monotonic() + timeout_s
        while (found := self.read(run))["state_type"] not in ENDED:
            assert time.monotonic() < end, f"{found['name']} is still {found['state_name']}"
            time.sleep(0.3)
        return found

    def retry(self, run: str) -> None:
        """Press Retry, as the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        answer = self.ask(f"flow_runs/{run}/set_state", state=state)
        assert answer["status"] == "ACCEPT", answer

    def tasks(self, run: str, settled: bool = True) -> list[tuple[str, str, str]]:
        """Read name, state and message of a run's tasks in order.

        Settled: once the server has recorded all their events, as far as can be seen: none is on its way, and a second
        look finds what the first one found.
        """
        end = time.monotonic() + 60
        before: list[tuple[str, str, str]] | None = None
        while True:
            of_run = {"flow_run_id": {"any_": [run]}}
            found = self.ask("task_runs/filter", task_runs=of_run, sort="EXPECTED_START_TIME_ASC")
            tasks = [(task["name"], task["state_name"], task["state"]["message"] or "") for task in found]
            on_their_way = before != tasks or any(state in ("Pending", "Running") for _, state, _ in tasks)
            if not settled or not on_their_way or time.monotonic() > end:
                return tasks
            before = tasks
            time.sleep(0.5)

    def logs(self, run: str) -> str:
        """Read what a run logged."""
        of_run = {"flow_run_id": {"any_": [run]}}
        return "\n".join(line["message"] for line in self.ask("logs/filter", logs=of_run, sort="TIMESTAMP_ASC"))
