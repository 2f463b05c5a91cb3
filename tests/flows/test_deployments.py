"""Deployments on a real Prefect server: what people find there, and that registering again takes nothing from them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.deployments import FILE, read_deployments, target_entry
from nightjar.errors import BadOptions
from nightjar.plugins.registry import names
from tests.flows.conftest import ROOT, Cli
from tests.prefect_server import prefect_server

pytestmark = pytest.mark.slow


def test_the_file_has_every_target_as_a_folder_alone_would_be_deployed() -> None:
    said = yaml.safe_load(FILE.read_text())
    ports = {one["name"]: one for one in said["deployments"] if "port" in one["tags"]}
    assert ports == {target: target_entry(target, said["definitions"]) for target in names("targets")}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("cron: 0 2 * * *", "cron: 0 25 * * *", 'Invalid cron string: "0 25 * * *"'),
        ("timezone: UTC", "timezone: Mars/Olympus", 'Invalid timezone: "Mars/Olympus"'),
        ("CANCEL_NEW}", "SHRUG}", "collision_strategy"),
        ("name: nightjar\n", "name: [\n", "cannot read the deployments"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(FILE.read_text().replace(old, new))
    with pytest.raises(BadOptions) as refused:
        read_deployments(file)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_server_nothing_is_registered(cli: Cli) -> None:
    none = cli("flows", "deploy")
    assert (none.returncode, none.stderr.count("\n")) == (3, 1), none.stderr
    assert "no Prefect server is configured" in none.stderr
    away = cli("flows", "revive", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (away.returncode, away.stderr.count("\n")) == (3, 1), away.stderr


def state_of(server: str) -> dict[str, Any]:
    """Read what a person may have changed: ids, pauses, priorities, limits, schedules."""
    deployments = httpx.post(f"{server}/deployments/filter", json={}).json()
    queues = httpx.post(f"{server}/work_pools/apart/queues/filter", json={}).json()
    limits = httpx.post(f"{server}/v2/concurrency_limits/filter", json={}).json()
    kept = ("id", "paused", "parameters", "tags", "version", "concurrency_limit", "parameter_openapi_schema")
    return {
        "deployments": {one["name"]: {name: one[name] for name in kept} for one in deployments},
        "schedules": {
            one["name"]: [{n: s[n] for n in ("id", "slug", "active", "schedule")} for s in one["schedules"]]
            for one in deployments
        },
        "queues": {one["name"]: (one["id"], one["priority"], one["is_paused"]) for one in queues},
        "limits": {one["name"]: (one["id"], one["limit"]) for one in limits},
    }


@pytest.fixture
def new_server(tables: Path, tmp_path: Path) -> Iterator[str]:
    """A server on which nothing was ever registered."""
    (tmp_path / "prefect").mkdir()
    shutil.copyfile(tables, tmp_path / "prefect" / "prefect.db")
    with prefect_server(tmp_path / "prefect") as url:
        yield url


def test_registering_again_changes_nothing_that_a_person_changed(new_server: str, cli: Cli, tmp_path: Path) -> None:
    server = new_server
    file, boards = tmp_path / "prefect.yaml", tmp_path / "boards.toml"
    file.write_text(FILE.read_text())
    boards.write_text('[rk-shelf]\ntarget = "rknn"\n')
    asked = ("flows", "deploy", "--pool", "apart", "--file", file)
    first = cli(*asked, PREFECT_API_URL=server, NIGHTJAR_BOARDS=str(boards))
    assert first.returncode == 0, first.stderr + first.stdout
    new = state_of(server)
    assert new["deployments"].keys() >= {*names("targets"), "default"}
    assert new["limits"]["toolchain:rknn"][1] == new["limits"]["board:rk-shelf"][1] == 1
    assert new["queues"]["host"][1] < new["queues"]["rknn"][1] < new["queues"]["nightly"][1]
    (night,) = new["schedules"]["default"]
    assert (night["schedule"]["cron"], night["schedule"]["timezone"], night["active"]) == ("0 2 * * *", "UTC", True)

    nightly, onnx = new["deployments"]["default"]["id"], new["deployments"]["onnx"]["id"]
    changes = [
        (f"deployments/{nightly}/schedules/{night['id']}", {"active": False}),
        (f"deployments/{onnx}", {"paused": True, "parameters": {"target": "onnx", "limit": 5}, "tags": ["mine"]}),
        ("work_pools/apart/queues/host", {"is_paused": True}),
        ("v2/concurrency_limits/toolchain:rknn", {"limit": 3}),
    ]
    for path, change in changes:
        assert httpx.patch(f"{server}/{path}", json=change).is_success, path
    changed = state_of(server)
    assert changed != new
    again = cli(*asked, PREFECT_API_URL=server, NIGHTJAR_BOARDS=str(boards))
    assert again.returncode == 0, again.stderr
    assert state_of(server) == changed
    assert "switched off" in again.stdout

    # the file says something new: that alone is taken over
    text = (
        FILE.read_text()
        .replace("cron: 0 2 * * *", "cron: 30 3 * * *")
        .replace("Port a model to onnx.", "Port to onnx.")
    )
    file.write_text(text)
    assert cli(*asked, PREFECT_API_URL=server, NIGHTJAR_BOARDS=str(boards)).returncode == 0
    after = state_of(server)
    (later,) = after["schedules"]["default"]
    assert (later["id"], later["schedule"]["cron"], later["active"]) == (night["id"], "30 3 * * *", False)
    port = after["deployments"]["onnx"]
    assert (port["id"], port["paused"], port["parameters"]["limit"]) == (onnx, True, 5)
    assert {"mine", "nightjar"} <= set(port["tags"])
    assert (after["queues"], after["limits"]) == (changed["queues"], changed["limits"])

    reset = cli(*asked, "--reset", PREFECT_API_URL=server, NIGHTJAR_BOARDS=str(boards))
    assert reset.returncode == 0, reset.stderr
    fresh = state_of(server)
    assert fresh["schedules"]["default"][0]["active"]
    assert not fresh["deployments"]["onnx"]["paused"]
    assert (fresh["queues"], fresh["limits"]) == (new["queues"], new["limits"])


def form(server: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server}/deployments/name/{name}").json()
    return found


def test_a_form_is_flat_and_refuses_before_a_run_starts(server: str, deployed: str) -> None:
    there = form(server, "port/rknn")
    fields = there["parameter_openapi_schema"]["properties"]
    assert not [
        name for name, field in fields.items() if "anyOf" in field or "$ref" in field or not field["description"]
    ]
    assert [name for name, _ in sorted(fields.items(), key=lambda item: item[1]["position"])][:4] == [
        *("model", "target", "precision", "board")
    ]
    assert fields["target"]["enum"] == ["rknn"]
    assert fields["precision"]["enum"] == ["fp", "int8", "auto"]
    assert fields["decoder"]["enum"] == ["window", "static", "cached"]
    assert {"whisper-nano", "tiny.en"} <= set(fields["model"]["enum"])
    torchscript = form(server, "port/torchscript")["parameter_openapi_schema"]["properties"]["precision"]
    assert (torchscript["enum"], torchscript["default"]) == (["fp"], "fp")

    before = httpx.post(f"{server}/flow_runs/count", json={}).json()
    for wrong in (
        {"model": "whisper-nanu"},
        {"target": "onnx"},
        {"precision": "int4"},
        {"decoder": "quick"},
        {"window": 0},
        {"limit": 2.5},
        {"calibration_samples": 0},
        {"refresh": ["everything"]},
    ):
        refused = httpx.post(f"{server}/deployments/{there['id']}/create_flow_run", json={"parameters": wrong})
        assert refused.status_code == 409, (wrong, refused.text)
        assert next(iter(wrong)) in refused.text
    assert httpx.post(f"{server}/flow_runs/count", json={}).json() == before


def test_prefect_itself_deploys_the_file(server: str, deployed: str) -> None:
    pool = httpx.post(f"{server}/work_pools/", json={"name": "nightjar", "type": "process"})
    assert pool.status_code in (201, 409), pool.text
    command = ["-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": server},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    there = httpx.get(f"{server}/deployments/name/nightly/default").json()
    assert there["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert there["job_variables"]["working_dir"] == str(ROOT)
    assert there["pull_steps"] == []


SLOTS = """
import httpx, os
from prefect import flow
from nightjar.boards.board import LocalBoard
from nightjar.plugins.registry import Plugin
from tasks.concurrency import hold_board, hold_toolchain
from tasks.stage import current_or_new_run

def active():
    return httpx.get(os.environ["PREFECT_API_URL"] + "/v2/concurrency_limits/toolchain:rknn").json()["active_slots"]

@flow
def work():
    with hold_toolchain(Plugin(module="targets.onnx")):
        print("onnx", active(), flush=True)
    with hold_toolchain(Plugin(module="targets.rknn")):
        print("compiling", active(), flush=True)
    board = LocalBoard(runners={"rknn": "targets.rknn.toolchain.simulate"})
    with current_or_new_run(()), hold_board(board, lambda: False):
        print("simulating", active(), flush=True)

work()
"""


def test_a_toolchain_is_used_by_one_at_a_time(server: str, deployed: str, tmp_path: Path) -> None:
    taken = {"names": ["toolchain:rknn"], "slots": 1, "mode": "concurrency", "lease_duration": 600}
    lease = httpx.post(f"{server}/v2/concurrency_limits/increment-with-lease", json=taken)
    assert lease.is_success, lease.text
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOTS],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT), "NIGHTJAR_STORE": str(tmp_path)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    for _ in range(600):
        if "waiting for its limit" in (text := (tmp_path / "said").read_text()):
            break
        time.sleep(0.1)
    assert "toolchain rknn is held by another run; waiting for its limit toolchain:rknn" in text
    assert "onnx 1\n" in text, "a target without an SDK waited for one"
    assert "compiling" not in text
    freed = {"slots": 1, "lease_id": lease.json()["lease_id"]}
    assert httpx.post(f"{server}/v2/concurrency_limits/decrement-with-lease", json=freed).is_success
    assert process.wait(timeout=120) == 0
    text = (tmp_path / "said").read_text()
    assert "compiling 1\n" in text
    assert "simulating 1\n" in text
    assert httpx.get(f"{server}/v2/concurrency_limits/toolchain:rknn").json()["active_slots"] == 0
