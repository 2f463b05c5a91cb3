"""Overhead and reliability of Prefect: a cached cell against the plain function, and a hundred cells scheduled at once.

    .venv/bin/python benchmarks/scheduling.py [warm] [sqlite] [postgresql] [--cells N] [--limit N] [--json F]

A cell is a port of whisper-nano to onnx in float on a few clips. All its stages are in the store but the last two: each
of the hundred has its own budget, so its verdict and page are made once, and the store shows it.
Exits with 1 if a bound is missed or a cell is lost or executed twice.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.flows.working import Runs, Worker  # noqa: E402
from tests.postgres import BINARIES, postgres  # noqa: E402
from tests.prefect_server import prefect_server  # noqa: E402

CELL = {"precision": "fp", "limit": 4}
BOUND_S = 2.0
TIMED = """
import json, sys, time
from flows.port import port
from flows.port_form import port as form, port_request
given = json.loads(sys.argv[1])
request = port_request({"model": "whisper-nano", **given})
began, cpu = time.perf_counter(), time.process_time()
form(**given) if sys.argv[2] == "flow" else port.fn(request)
print(time.perf_counter() - began, time.process_time() - cpu)
"""
SERVE = (
    "import sys\nfrom prefect.types.entrypoint import EntrypointType\nfrom flows.port_form import port\n"
    "port.serve('served', entrypoint_type=EntrypointType.MODULE_PATH, enforce_parameter_schema=True)\n"
)


def environment(store: Path, **more: str) -> dict[str, str]:
    """Return the environment of the processes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    return {**clean, "NIGHTJAR_STORE": str(store), "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", **more}


def called(store: Path, how: str = "function", **more: str) -> tuple[float, float]:
    """Call the plain function or the flow in a fresh process; return seconds and processor seconds after imports."""
    asked = json.dumps({"target": "onnx", **CELL})
    done = subprocess.run(
        [sys.executable, "-c", TIMED, asked, how],
        cwd=ROOT,
        env=environment(store, PREFECT_LOGGING_LEVEL="ERROR", **more),
        capture_output=True,
        text=True,
        check=True,
    )
    wall_s, cpu_s = map(float, done.stdout.split()[-2:])
    return wall_s, cpu_s


def warm(folder: Path, store: Path, repeats: int) -> list[dict[str, Any]]:
    """Run a fully cached cell as a served flow without a worker and as the plain function, in turn."""
    called(store)
    rows = []
    with prefect_server(folder / "served", None) as url:
        runs = Runs(url)
        with (folder / "serve.log").open("w") as log:
            serving = subprocess.Popen(
                [sys.executable, "-c", SERVE],
                cwd=ROOT,
                env=environment(store, PREFECT_API_URL=url, PREFECT_RUNNER_POLL_FREQUENCY="1"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not httpx.get(f"{url}/deployments/name/port/served").is_success:
                time.sleep(0.5)
            for _ in range(repeats + 1):
                bare_s, bare_cpu_s = called(store)
                _, flow_cpu_s = called(store, "flow", PREFECT_API_URL=url)
                run = runs.ended(runs.start("port/served", model="whisper-nano", target="onnx", **CELL))
                states = {state for _, state, _ in runs.tasks(run["id"])}
                assert states == {"Cached"}, states
                began, created, over = (instant(run[name]) for name in ("start_time", "created", "end_time"))
                row = {"plain_s": bare_s, "run_s": over - began, "all_s": over - created}
                rows.append({**row, "plain_cpu_s": bare_cpu_s, "flow_cpu_s": flow_cpu_s})
        finally:
            os.killpg(serving.pid, signal.SIGINT)
            serving.wait(timeout=60)
    return rows[1:]  # the first run fills the system's caches


def instant(text: str) -> float:
    """Return a time of the API in seconds."""
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def settled(runs: Runs, run_id: str, within_s: float = 120) -> list[Any]:
    """Return a run's task runs once all have ended: the server builds that list from events, with a delay."""
    end = time.monotonic() + within_s
    while True:
        tasks = list(runs.tasks(run_id))
        whole = any(name == "report" for name, _, _ in tasks)  # the last
        if time.monotonic() > end or (whole and all(state in ("Completed", "Cached") for _, state, _ in tasks)):
            return tasks
        time.sleep(0.5)


def at_once(folder: Path, store: Path, database: str | None, cells: int, limit: int) -> dict[str, Any]:
    """Schedule cells at once on one worker; count their outcomes."""
    with prefect_server(folder, database) as url:
        runs = Runs(url)
        subprocess.run(
            [sys.executable, "-m", "nightjar.cli.main", "flows", "deploy", "--reset"],
            cwd=ROOT,
            env=environment(store, PREFECT_API_URL=url),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        queue = httpx.get(f"{url}/work_pools/nightjar/queues/host").json()
        httpx.patch(f"{url}/work_queues/{queue['id']}", json={"concurrency_limit": limit})
        began = time.perf_counter()
        ids = [
            runs.start("port/onnx", model="whisper-nano", **CELL, max_delta_wer=1 + (number + 1) / cells)
            for number in range(cells)
        ]
        scheduled_s = time.perf_counter() - began
        worker = Worker(url, "nightjar", store, folder / "worker.log")
        try:
            ended = [runs.ended(one, timeout_s=3600) for one in ids]
            took_s = time.perf_counter() - began
            ran = [
                sum(
                    state["type"] == "RUNNING"
                    for state in httpx.get(f"{url}/flow_run_states/", params={"flow_run_id": one}).json()
                )
                for one in ids
            ]
            made = [[name for name, state, _ in settled(runs, one) if state == "Completed"] for one in ids]
        finally:
            worker.stop()
    return {
        "cells": cells,
        "ended well": sum(run["state_type"] == "COMPLETED" for run in ended),
        "executed once": sum(run["run_count"] == times == 1 for run, times in zip(ended, ran, strict=True)),
        "made judge and report, and nothing else": sum(each == ["judge", "report"] for each in made),
        "scheduled_s": round(scheduled_s, 1),
        "took_s": round(took_s, 1),
        "s_per_cell": round(took_s / cells, 2),
        "limit": limit,
    }


def main() -> int:
    """Run the requested benchmarks and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="warm, sqlite, postgresql (default: all)")
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--limit", type=int, default=4, help="runs at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    what = arguments.what or ["warm", "sqlite", "postgresql"]
    found: dict[str, Any] = {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    well = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # PostgreSQL's user must reach it
        if "warm" in what:
            rows = warm(folder, folder / "artifacts", arguments.repeats)
            found["warm"] = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
            over_s = statistics.median(row["run_s"] - row["plain_s"] for row in rows)
            found["warm"]["over_s"] = round(over_s, 2)
            well &= over_s <= BOUND_S
            found["warm"]["cpu_over_s"] = round(statistics.median(r["flow_cpu_s"] - r["plain_cpu_s"] for r in rows), 2)
            print("warm", found["warm"], f"bound {BOUND_S}")
        for database in ("sqlite", "postgresql"):
            if database not in what:
                continue
            if database == "postgresql" and BINARIES is None:
                print("postgresql is not installed: run `apt install postgresql`")
                return 2
            store = folder / f"store-{database}"
            called(store)
            with postgres(folder / "postgres") if database == "postgresql" else nullcontext(None) as address:
                counts = at_once(folder / database, store, address, arguments.cells, arguments.limit)
            counts["verdicts in the store"] = len(list(store.glob("judge/*/record.json"))) - 1  # but the plain call's
            found[database] = counts
            print(database, counts)
            well &= all(
                counts[name] == arguments.cells
                for name in ("ended well", "executed once", "made judge and report, and nothing else")
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
