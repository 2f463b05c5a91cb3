"""Nights in fast motion: what a person finds in the morning, on a real store, a real board and a real server."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from nightjar.cli.main import main
from nightjar.nightly.evidence import read_evidence
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.store.artifact import Store
from tests.flows.conftest import ROOT, Cli, shipped_speech, write_speech
from tests.flows.working import Worker
from tests.loopback import Loopback
from tests.nights import NANO, Nights, altered, outcomes, worse, write_config

pytestmark = pytest.mark.slow


def test_five_nights_each_regression_is_found_on_its_night_and_none_is_invented(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    monkeypatch.setenv("NIGHTJAR_HISTORY", str(tmp_path / "history"))
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path / "none"))
    cells = '[[cells]]\nmodels = ["nano"]\ntargets = ["onnx"]\nprecisions = ["fp", "int8"]\n'
    cells += '[[cells]]\nmodels = ["nano"]\ntargets = ["onnx"]\nprecisions = ["fp"]\nboard = "loop"\n'
    cells += '[[cells]]\nmodels = ["nano"]\ntargets = ["rknn"]\nprecisions = ["fp"]\n'  # not installed, and never was
    nights = Nights(tmp_path, write_config(tmp_path, cells))
    local, quantized, remote, absent = "nano/onnx/fp", "nano/onnx/int8", "nano/onnx/fp/loop", "nano/rknn/fp"

    altered(nights.current, 0, seed=1)
    code, first = nights.run(1)
    assert (code, first["findings"]) == (0, []), first["sentence"]
    assert set(outcomes(first)) == {local, quantized, remote, absent}
    assert all(cell["wer"] < 20 for cell in first["cells"][:3])
    assert "nightjar toolchain install rknn" in first["cells"][3]["error"]
    assert "1 is missing" in first["sentence"]
    assert first["cells"][0]["executed"]  # not the board's: an sshd on this machine is the same board

    code, second = nights.run(2)
    assert (code, second["findings"]) == (0, [])
    assert not any(cell["executed"] for cell in second["cells"])

    altered(nights.current, 1e-4, seed=2)
    code, third = nights.run(3)
    assert code == 0, third["sentence"]
    assert worse(third) == []
    assert {each["cell"] for each in third["findings"]} == {local, quantized, remote}
    assert all(each["causes"].startswith("checkpoint ") for each in third["findings"])

    loop.stop()
    try:
        code, fourth = nights.run(4)
    finally:
        loop.start()
    assert code == 1
    assert outcomes(fourth) == {**outcomes(third), remote: "MISSING"}
    assert worse(fourth) == [(remote, "outcome", "board")]
    assert fourth["sentence"].startswith(f"FAIL: {remote} is missing: board loop")

    altered(nights.current, 0.35, seed=3)
    capsys.readouterr()
    _, fifth = nights.run(5)
    assert {(cell, "wer", "checkpoint") for cell in (local, quantized, remote)} <= set(worse(fifth))
    assert {kind for _, kind, _ in worse(fifth)} <= {"wer", "outcome"}
    back = next(each for each in fifth["findings"] if (each["cell"], each["kind"]) == (remote, "outcome"))
    assert (back["before"], back["regression"]) == ("MISSING", False)
    said = next(each for each in fifth["findings"] if (each["cell"], each["kind"]) == (remote, "wer"))
    assert said["other"] == third["night"]["night"], "compared with the last night that has its WER"
    assert "stock changed too" in said["sentence"]
    assert said["sentence"] in capsys.readouterr().out.replace("\n", " ")

    monkeypatch.setenv("NIGHTJAR_REPORTS", str(tmp_path))
    _, again = nights.run(5, "--site")  # a retry
    assert again["findings"] == fifth["findings"]
    assert remote in (tmp_path / "site" / "index.html").read_text()
    store = Store(tmp_path / "artifacts")
    cell = History().rows_before("2026-11-04")[local][0]
    assert read_evidence(store, cell).scores["binary"].wer == cell.wer
    (store.root / "judge" / cell.judge / "verdict.json").write_text("{}")  # what is damaged is not believed
    assert read_evidence(store, cell).scores == {}
    kept = History()
    assert list(kept.table(Night)["night"].str[8:10]) == ["01", "02", "03", "04", "05"]
    assert (kept.table(Cell).groupby("cell")["night"].nunique() == 5).all()
    assert len(kept.table(Cell)) == 20
    assert len(kept.table(Finding)) == sum(len(each["findings"]) for each in (third, fourth, fifth))
    assert kept.table(Cell)["counts"].all()
    assert pd.isna(kept.table(Cell).query("outcome == 'MISSING'")["wer"]).all()


def test_bisect_shows_what_the_bad_checkpoint_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_store: Path
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(shared_store))
    flags = shipped_speech(tmp_path, calibration=4, evaluation=8)
    bad = altered(tmp_path / "bad.pt", 0.35, seed=3)
    said = tmp_path / "bisect.json"
    asked = ["bisect", "--model", "nano", *flags, "--precision", "fp", "--json", str(said)]
    assert main([*asked, "--checkpoint", str(NANO), str(bad)]) == 1
    results = json.loads(said.read_text())
    assert results["wer"]["low"] > 0
    assert [each.split()[0] for each in results["differs"]] == ["checkpoint"]
    assert results["clips"]
    assert all(clip["before"] != clip["after"] for clip in results["clips"])
    stages = {stage["name"]: stage["same"] for stage in results["stages"]}
    assert not stages["export"]
    printed = capsys.readouterr().out
    assert "WER is worse in B" in printed
    assert results["clips"][0]["id"] in printed

    assert main([*asked, "--checkpoint", str(NANO), str(NANO)]) == 0
    same = json.loads(said.read_text())
    assert (same["differs"], same["clips"], same["wer"]["low"], same["wer"]["high"]) == ([], [], 0, 0)
    assert all(stage["same"] for stage in same["stages"])
    assert main([*asked, "--checkpoint", str(NANO)]) == 2


BAD_CONFIGS = {
    "an unknown key": ('[[cells]]\nmodels = ["whisper-nano"]\ntargets = ["onnx"]\nprecision = ["fp"]\n', "'precision'"),
    "an unknown table": ('[cell]\nmodels = ["whisper-nano"]\n', "[cell]"),
    "an unknown model": ('[[cells]]\nmodels = ["nano"]\ntargets = ["onnx"]\nprecisions = ["fp"]\n', "no model 'nano'"),
    "an unknown target": ('[[cells]]\nmodels = ["whisper-nano"]\ntargets = ["tpu"]\nprecisions = ["fp"]\n', "'tpu'"),
    "no such precision": (
        '[[cells]]\nmodels = ["whisper-nano"]\ntargets = ["onnx"]\nprecisions = ["auto"]\n',
        "--precision auto",
    ),
    "a board of another target": (
        '[[cells]]\nmodels = ["whisper-nano"]\ntargets = ["onnx"]\nprecisions = ["fp"]\nboard = "simulator"\n',
        "'simulator'",
    ),
    "a cell twice": (
        2 * '[[cells]]\nmodels = ["whisper-nano"]\ntargets = ["onnx"]\nprecisions = ["fp"]\n',
        "[[cells]] 2: cell whisper-nano/onnx/fp occurs twice",
    ),
    "a value out of range": (
        '[defaults]\nlimit = 0\n[[cells]]\nmodels = ["whisper-nano"]\ntargets = ["onnx"]\nprecisions = ["fp"]\n',
        "limit = 0",
    ),
    "no TOML": ("[[cells]\n", "is not TOML"),
    "no cells": ("[defaults]\nlimit = 3\n", "has no cell"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_wrong_config_is_refused_in_one_line_before_anything_runs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_HISTORY", str(tmp_path / "history"))
    text, named = BAD_CONFIGS[what]
    path = tmp_path / "night.toml"
    path.write_text(text)
    assert main(["nightly", "--config", str(path), "--plan"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert str(path) in error
    assert named in error
    assert not (tmp_path / "history").exists()


def test_the_default_config_is_right_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path / "none"))
    assert main(["nightly", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "whisper-nano/onnx/int8: " in said
    assert "nightjar toolchain install rknn" in said.replace("\n", " ")


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A web hook on this machine: its address, and the bodies that came."""
    bodies: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}/hook", bodies
    listening.shutdown()
    listening.server_close()


def children(url: str) -> dict[str, dict[str, Any]]:
    """Return the runs that a night handed out, by name."""
    wanted = {"flow_runs": {"name": {"like_": "port-hand"}}, "sort": "NAME_DESC"}
    return {run["name"]: run for run in httpx.post(f"{url}/flow_runs/filter", json=wanted).json()}


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.5)


def test_a_night_by_the_queues_revives_what_crashed_runs_nothing_twice_and_tells_people(
    server: str, deployed: str, cli: Cli, random_checkpoint: Path, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    address, bodies = listener
    words = {"w0": "red", "w1": "blue"}
    calibration = write_speech(tmp_path / "calibration", words, speaker="ada")
    test = write_speech(tmp_path / "test", words, speaker="bob")
    config = tmp_path / "night.toml"
    config.write_text(
        f'[checkpoints]\nhand = "{random_checkpoint}"\nhandless = "gone.pt"\n[defaults]\nwindow = 5\n'
        f'calibration_set = "{calibration}"\ntest_set = "{test}"\n'
        '[[cells]]\nmodels = ["hand", "handless"]\ntargets = ["onnx"]\nprecisions = ["fp"]\n'
    )
    store, history, said = tmp_path / "artifacts", tmp_path / "history", tmp_path / "night.json"
    there = os.environ | {
        "PREFECT_API_URL": server,
        "NIGHTJAR_STORE": str(store),
        "NIGHTJAR_HISTORY": str(history),
        "PYTHONPATH": str(ROOT),
    }
    (tmp_path / ".nightjar-webhook").write_text(f"{address}\n")
    lines = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "alerts.md").read_text(), re.DOTALL)
    assert lines is not None
    home = there | {"HOME": str(tmp_path)}
    told = subprocess.run(
        ["bash", "-ec", lines[1]], env=home, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr

    asked = ["nightly", "--config", str(config), "--hand-out", "--night", "2026-11-20T02:00:00Z", "--json", str(said)]
    night = subprocess.Popen([sys.executable, "-m", "nightjar.cli.main", *asked], env=there, cwd=ROOT)
    until(lambda: len(children(server)) == 2)
    lost = children(server)["port-hand-onnx-fp"]
    crashed = {"state": {"type": "CRASHED", "message": "its machine went away"}, "force": True}
    httpx.post(f"{server}/flow_runs/{lost['id']}/set_state", json=crashed).raise_for_status()
    until(lambda: children(server)["port-hand-onnx-fp"]["state_name"] == "AwaitingRetry")
    worker = Worker(server, deployed, store, tmp_path / "worker.log")
    try:
        assert night.wait(timeout=400) == 1
        first = json.loads(said.read_text())
        assert outcomes(first)["handless/onnx/fp"] == "MISSING"
        assert outcomes(first)["hand/onnx/fp"] in ("PASS", "FAIL", "UNDECIDED")
        assert "gone.pt" in first["night"]["failed"]
        ran = children(server)
        assert ran["port-hand-onnx-fp"]["id"] == lost["id"]

        again = cli(*asked, store=store, **{name: there[name] for name in ("PREFECT_API_URL", "NIGHTJAR_HISTORY")})
        assert again.returncode == 1, again.stdout + again.stderr
    finally:
        worker.stop()
    second = children(server)
    assert {name: run["id"] for name, run in second.items()} == {name: run["id"] for name, run in ran.items()}
    assert second["port-hand-onnx-fp"]["run_count"] == ran["port-hand-onnx-fp"]["run_count"], "it ran twice"
    assert second["port-handless-onnx-fp"]["run_count"] > ran["port-handless-onnx-fp"]["run_count"]
    assert len(pd.read_csv(history / "nights.csv")) == 1
    assert json.loads(said.read_text())["cells"][0]["judge"] == first["cells"][0]["judge"]

    until(lambda: len(bodies) >= 1, seconds=60)
    asked_for = {"filter": {"event": {"name": ["nightjar.verdict"]}, "any_resource": {"labels": {}}}}
    verdicts = httpx.post(f"{server}/events/filter", json=asked_for).json()["events"]
    ours = [each for each in verdicts if each["resource"]["prefect.resource.id"] == "nightjar.cell.hand/onnx/fp"]
    assert len(ours) == 1
    assert ours[0]["payload"]["outcome"] == ours[0]["resource"]["nightjar.outcome"] == outcomes(first)["hand/onnx/fp"]
    assert json.loads(bodies[0])["text"] == first["sentence"]
    assert address not in json.dumps(httpx.post(f"{server}/events/filter", json={}).json())
    named = {"flow_runs": {"name": {"any_": ["night-2026-11-20T02:00:00Z"]}}}
    states = httpx.post(f"{server}/flow_runs/filter", json=named).json()
    assert [run["state_name"] for run in states] == ["Failed", "Failed"]
    assert first["sentence"] in [run["state"]["message"] for run in states]
    left = httpx.post(f"{server}/artifacts/filter", json={"artifacts": {"key": {"any_": ["night"]}}}).json()
    assert any("# FAIL · the night of 2026-11-20T02:00:00Z" in each["data"] for each in left)
