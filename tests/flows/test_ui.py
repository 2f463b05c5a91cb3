"""What a person sees of a run in the UI of a real server: the verdict first, progress on a long stage, a folded log."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flows.conftest import ROOT

pytestmark = pytest.mark.slow

FLOW = """
import sys, time
from pathlib import Path
from prefect import flow
import tasks.prefect_ui
from nightjar.errors import ToolchainFailed
from nightjar.process import run_logged
from nightjar.nightly.history import Cell, Finding, Night
from nightjar.progress import tick
from nightjar.store.artifact import Store
from tasks.publish import publish_night
from tasks.stage import Run, running, stage

tasks.prefect_ui.FIRST_S = tasks.prefect_ui.EVERY_S = 0.2
NOISE = "for i in range(3000): print('I layer', i)\\nprint('W a layer stays float')\\nprint('the <last> line')"

@stage
def compiled(*, ends: str, out: Path) -> dict[str, str]:
    "Print a lot, slowly."
    run_logged([sys.executable, "-c", NOISE], {}, out, out / "log.txt", 60)
    (out / "log.txt").unlink()
    for done in range(8):
        time.sleep(0.2)
        tick(done + 1, 8)
    if ends == "badly":
        raise ToolchainFailed("the toolkit refused the <graph>")
    (out / "binary").write_text("made")
    return {}

N = {"night": "2026-11-20T02:00:00Z"}
NIGHT = Night(**N, started="", finished="", outcome="FAIL", cells=2, failed="a|b/rknn/int8 fails")
BAD = {"cell": "a|b/rknn/int8", "model": "a|b", "target": "rknn", "tier": "vendor-simulator", "outcome": "FAIL"}
STANDIN = {"cell": "a/mtk/int8", "model": "a", "target": "mtk", "tier": "stand-in", "outcome": "PASS"}
CELLS = [
    Cell(**N, **BAD, precision="int8", counts=True, wer=3.5, delta_wer=2.5, low=1.5, high=3.5),
    Cell(**N, **STANDIN, precision="int8", counts=False, wer=1.0),
]
AGAINST = {"kind": "wer", "regression": True, "against": "last", "other": "2026-11-19T02:00:00Z"}
WORSE = Finding(**N, **AGAINST, cell=BAD["cell"], before="", after="", sentence="a|b/rknn/int8 hears <worse>.")

@flow(name="shown")
def shown():
    publish_night(NIGHT, CELLS, [WORSE])
    for ends in ("well", "well", "badly"):
        compiled(ends=ends, label=ends)

def main(store):
    with running(Run(Store(Path(store)))):
        shown()
"""


def of_run(url: str, what: str, flow_run: str, **more: Any) -> list[dict[str, Any]]:
    asked = {what: {"flow_run_id": {"any_": [flow_run]}}, **more}
    found: list[dict[str, Any]] = httpx.post(f"{url}/{what}/filter", json=asked).raise_for_status().json()
    return found


def test_a_long_stage_shows_its_progress_and_a_toolchains_log_is_folded(server: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(FLOW)
    environment = {
        **os.environ,
        "PREFECT_API_URL": server,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nightjar,tasks",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "NIGHTJAR_SITE_URL": "https://nights.example/",
    }
    command = [sys.executable, "-c", f"import shown; shown.main({str(tmp_path / 'store')!r})"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "the toolkit refused the <graph>" in done.stderr, done.stdout + done.stderr
    newest = {"sort": "START_TIME_DESC", "limit": 1, "flows": {"name": {"any_": ["shown"]}}}
    run = httpx.post(f"{server}/flow_runs/filter", json=newest).json()[0]["id"]

    artifacts = [artifact for artifact in of_run(server, "artifacts", run) if artifact["key"]]
    by_key: dict[str, list[dict[str, Any]]] = {}
    for artifact in artifacts:
        by_key.setdefault(artifact["key"], []).append(artifact)
    assert sorted(by_key) == [
        "log-compiled-badly",
        "log-compiled-well",
        "night",
        "progress-compiled-badly",
        "progress-compiled-well",
    ]
    assert all(len(group) == 1 for group in by_key.values()), "a cached stage shows no progress and no log"
    night = by_key.pop("night")[0]["data"]
    assert night.startswith("# FAIL · the night of 2026-11-20T02:00:00Z\n")
    assert "- ▼ a\\|b/rknn/int8 hears \\<worse\\>." in night
    link = "[a\\|b/rknn/int8](https://nights.example/cells/a-b-rknn-int8.ff14d195.html)"
    assert f"| {link} | **FAIL** | vendor-simulator | 3.50 |" in night
    assert "| stand-in (PASS) | stand-in | 1.00 |" in night, "a stand-in is shown like a score of an NPU"
    assert all(artifact["task_run_id"] for group in by_key.values() for artifact in group)
    assert by_key["progress-compiled-well"][0]["data"] == 100.0
    assert by_key["progress-compiled-badly"][0]["data"] == 100.0  # it fails after its last tick
    failed = by_key["log-compiled-badly"][0]["data"]
    assert failed.startswith("# Failed · compiled badly")
    assert "the toolkit refused the \\<graph\\>" in failed
    assert "the &lt;last&gt; line" in failed
    assert "layer 2985" in failed.partition("<details>")[0]
    assert "layer 2970" not in failed.partition("<details>")[0], "the open lines are the last twenty"
    assert "layer 2970" in failed

    kept = next((tmp_path / "store" / "compiled").glob("*/toolchain.txt")).read_text()
    assert kept.count("I layer") == 3000
    for _ in range(100):  # logs are sent in the background
        said = [line["message"] for line in of_run(server, "logs", run, limit=200)]
        if any("3,002 lines of the toolchain" in line for line in said):
            break
        time.sleep(0.1)
    assert any("3,002 lines of the toolchain" in line and "1 of them" in line for line in said), "\n".join(said)
    assert not [line for line in said if "I layer" in line], "the run's log is flooded"
