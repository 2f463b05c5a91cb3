"""With a real Prefect server: states a person sees, and a retry that repeats only what had not finished."""

import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flows.conftest import Cli, write_speech

pytestmark = pytest.mark.slow

# A port's stages before anything is heard, and from there on.
BEFORE = ("export", "build reference", "build float", "harvest", "calibrate", "build binary", "stock")
AFTER = ("evaluate float", "evaluate binary", "judge", "report")


def task_states(url: str) -> list[tuple[str, str]]:
    """Return (name, state) of the newest flow run's tasks, in order; runs that are only scheduled do not count."""
    begun = {"flow_runs": {"start_time": {"is_null_": False}}, "sort": "START_TIME_DESC", "limit": 1}
    run = httpx.post(f"{url}/flow_runs/filter", json=begun).json()[0]
    found: list[dict[str, Any]] = httpx.post(
        f"{url}/task_runs/filter",
        json={"task_runs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"},
    ).json()
    return [(task["name"], task["state_name"]) for task in found]


def states_when_settled(url: str, *stages: str) -> dict[str, str]:
    """Wait for the server to have taken in what `stages` came to: events are sent and recorded in the background."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        states = dict(task_states(url))
        if states.keys() >= {*stages} and not {"Pending", "Running"} & {*states.values()}:
            return states
        time.sleep(0.1)
    raise AssertionError(f"of {stages} the server knows, 90 s after the run's end: {states}")


@pytest.fixture
def speech(tmp_path: Path, random_checkpoint: Path) -> list[str]:
    words = ("red", "blue", "stop", "start")
    calibration = write_speech(tmp_path / "calibration", {f"c{i}": word for i, word in enumerate(words)}, speaker="ada")
    test = write_speech(tmp_path / "test", {f"t{i}": word for i, word in enumerate(words)}, speaker="bob")
    lists = ["--calibration-set", str(calibration), "--test-set", str(test)]
    return ["--model", "random", "--checkpoint", str(random_checkpoint), *lists]


def test_a_second_run_is_cached_in_the_ui_and_a_failed_one_goes_on_from_its_failure(
    server: str, cli: Cli, speech: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "artifacts"
    # The evaluation fails: the store's folder for it cannot be made.
    store.mkdir()
    (store / "evaluate").write_text("in the way")
    failed = cli("port", *speech, store=store, PREFECT_API_URL=server)
    assert failed.returncode == 4, failed.stdout + failed.stderr
    before = states_when_settled(server, *BEFORE, "evaluate float")
    assert before.pop("evaluate float") == "Failed"
    assert {before[stage] for stage in BEFORE} <= {"Completed", "Cached"}
    assert before["export"] == before["stock"] == "Completed"

    (store / "evaluate").unlink()
    done = cli("port", *speech, store=store, PREFECT_API_URL=server)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    after = states_when_settled(server, *BEFORE, *AFTER)
    assert {after[stage] for stage in BEFORE} == {"Cached"}
    assert {after[stage] for stage in AFTER} == {"Completed"}

    third = cli("port", *speech, store=store, PREFECT_API_URL=server)
    assert "none was executed" in third.stdout
    assert {*states_when_settled(server, *BEFORE, *AFTER).values()} == {"Cached"}


def test_verdict_and_scores_are_artifacts_in_the_ui(server: str, cli: Cli, speech: list[str], tmp_path: Path) -> None:
    done = cli("port", *speech, "--precision", "fp", store=tmp_path / "artifacts", PREFECT_API_URL=server)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    keys = {artifact["key"] for artifact in httpx.post(f"{server}/artifacts/filter", json={}).json()}
    assert {"verdict-random-onnx-fp", "scores-random-onnx-fp"} <= keys


def test_the_server_is_found_by_doctor(server: str, cli: Cli) -> None:
    done = cli("doctor", PREFECT_API_URL=server)
    assert server in done.stdout
    silent = cli("doctor", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert silent.returncode == 3
    assert "does not answer" in silent.stdout


def test_a_server_that_is_away_ends_a_run_before_it_starts(cli: Cli, tmp_path: Path) -> None:
    away = cli("port", store=tmp_path / "artifacts", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert away.returncode == 3
    assert re.fullmatch(r"nightjar: Prefect server http://127\.0\.0\.1:9/api does not answer \(.+\): .+\n", away.stderr)
    assert not (tmp_path / "artifacts" / "export").exists()
