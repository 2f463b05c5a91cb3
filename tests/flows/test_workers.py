"""Deployed runs on real workers: a retry repeats only what failed, and a run goes on after its worker was killed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Cli, write_speech
from tests.flows.test_kills import finished_stages
from tests.flows.working import Runs, Worker

pytestmark = pytest.mark.slow

WORDS = ("red", "blue", "stop", "start")


@pytest.fixture
def filled(tmp_path: Path, random_checkpoint: Path) -> dict[str, str]:
    """A form filled in with a checkpoint of our own."""
    speech = {f"c{number}": word for number, word in enumerate(WORDS)}
    return {
        "checkpoint": str(random_checkpoint),
        "label": "deployed",
        "precision": "fp",  # weights of noise in int8 may fail, and a failed verdict is a failed run
        "calibration_set": str(write_speech(tmp_path / "calibration", speech, speaker="ada")),
        "test_set": str(write_speech(tmp_path / "test", speech, speaker="bob")),
    }


@pytest.fixture
def workers(server: str, deployed: str, tmp_path: Path) -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.stop()


def test_retry_from_the_ui_runs_only_what_failed(
    server: str, deployed: str, workers: list[Worker], filled: dict[str, str], tmp_path: Path
) -> None:
    store, runs = tmp_path / "artifacts", Runs(server)
    store.mkdir()
    (store / "judge").write_text("in the way")  # a late stage fails
    workers.append(Worker(server, deployed, store, tmp_path / "first.log"))
    run = runs.start("port/onnx", **filled)
    failed = runs.ended(run)
    assert failed["state_type"] == "FAILED"
    assert failed["name"] == "port-deployed-onnx-fp"
    message = failed["state"]["message"]
    assert message.startswith("StoreBroken: "), message
    assert "\n" not in message
    before = {name: (state, said) for name, state, said in runs.tasks(run)}
    assert before["judge"][0] == "Failed"
    assert before["judge"][1].partition(": ")[2] in message
    assert before["evaluate binary"][0] == "Completed"
    logged = runs.logs(run)
    assert "Traceback" not in logged
    assert "NoneType" not in logged
    assert "export: running (first run of deployed)" in logged, "what our code logs is not with the run"

    (store / "judge").unlink()
    runs.retry(run)
    done = runs.ended(run)
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    assert done["run_count"] == 2
    assert done["state"]["message"].partition(":")[0] in ("PASS", "UNDECIDED")
    again = runs.tasks(run)[len(before) :]
    assert {name for name, state, _ in again if state == "Cached"} == before.keys() - {"judge"}
    assert {name for name, state, _ in again if state == "Completed"} == {"judge", "report"}

    # options that contradict each other end a run at once, with the line that the command line would print
    wrong = runs.ended(runs.start("port/onnx", label="nobody"))
    assert wrong["state"]["message"].startswith("BadOptions: label nobody names a checkpoint of your own")
    assert not runs.tasks(wrong["id"])

    # four at once, two at a time: each is executed, and once
    many = [runs.start("port/onnx", **filled) for _ in range(4)]
    each = [runs.ended(one) for one in many]
    assert {(one["state_type"], one["run_count"]) for one in each} == {("COMPLETED", 1)}
    for one in many:
        assert {state for _, state, _ in runs.tasks(one)} == {"Cached"}


def judged(run: dict[str, Any]) -> bool:
    """Tell whether a run came to a verdict; weights of noise in int8 may fail theirs on some processors."""
    return run["state_type"] == "COMPLETED" or str(run["state"]["message"]).startswith("FAIL: ")


def test_a_run_goes_on_after_its_worker_and_process_were_killed(
    server: str, deployed: str, workers: list[Worker], filled: dict[str, str], tmp_path: Path, cli: Cli
) -> None:
    store, runs = tmp_path / "artifacts", Runs(server)
    victim = Worker(server, deployed, store, tmp_path / "victim.log")
    workers.append(victim)
    run = runs.start("port/onnx", **filled | {"precision": "int8"})  # long enough to be killed
    for _ in range(1200):
        if len(done := finished_stages(store)) >= 3:
            break
        time.sleep(0.1)
    assert len(done) >= 3, victim.log.read_text()[-2000:]
    os.killpg(victim.process.pid, signal.SIGSTOP)  # it could end while the next command starts

    alive = cli("flows", "revive", store=store, PREFECT_API_URL=server)
    assert "nothing to revive: 1 alive" in alive.stdout, alive.stdout + alive.stderr
    assert runs.read(run)["state_type"] == "RUNNING"

    victim.kill()
    before = finished_stages(store)
    assert runs.read(run)["state_type"] == "RUNNING", "the run had ended before it could be killed"
    revived = cli("flows", "revive", store=store, PREFECT_API_URL=server)
    assert revived.returncode == 0, revived.stderr
    assert f"revived port-deployed-onnx-int8 ({run}): its process" in revived.stdout
    assert runs.read(run)["state_name"] == "AwaitingRetry"
    assert not [name for name, state, _ in runs.tasks(run, settled=False) if state == "Running"]

    workers.append(Worker(server, deployed, store, tmp_path / "second.log"))
    ended = runs.ended(run)
    assert judged(ended), ended["state"]["message"]
    assert ended["run_count"] == 2
    after = finished_stages(store)
    assert {stage: after[stage] for stage in before} == before, "a finished stage ran again"
    for _ in range(600):
        if not (left := list((store / ".attempts").glob("*"))):
            break
        time.sleep(0.1)
    assert not left, "the lock outlived its process"
    quiet = cli("flows", "revive", store=store, PREFECT_API_URL=server)
    assert "nothing to revive: 0 alive" in quiet.stdout


def test_a_worker_killed_alone_leaves_its_run_at_work(
    server: str, deployed: str, workers: list[Worker], filled: dict[str, str], tmp_path: Path, cli: Cli
) -> None:
    store, runs = tmp_path / "artifacts", Runs(server)
    victim = Worker(server, deployed, store, tmp_path / "alone.log")
    workers.append(victim)
    run = runs.start("port/onnx", **filled | {"precision": "int8"})  # long enough to be killed
    while not (store / ".attempts" / f"{run}.json").exists():
        time.sleep(0.05)
    os.kill(victim.process.pid, signal.SIGKILL)
    victim.process.wait()
    # not even who cannot see its lock, and has little patience, takes it for dead
    elsewhere = cli("flows", "revive", "--older-than", "1", store=tmp_path / "other", PREFECT_API_URL=server)
    assert elsewhere.returncode == 0, elsewhere.stderr
    ended = runs.ended(run)
    assert judged(ended), ended["state"]["message"]
    assert ended["run_count"] == 1
