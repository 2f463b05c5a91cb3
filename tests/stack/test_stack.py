"""`make stack`: one per folder, services restart, `stop` and `start`, one line for a missing program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nightjar.stack.supervisor import start_time
from tests.stack.conftest import ROOT, Running

pytestmark = pytest.mark.slow


def test_a_second_start_finds_the_first_and_a_killed_service_restarts(stack: Running) -> None:
    assert stack.state is not None
    before = stack.state.parts["board"].pid
    again = stack.make("stack")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "runs already" in again.stdout
    assert stack.ui in again.stdout
    assert stack.state.parts["board"].pid == before

    restarts = stack.kill("board")
    stack.until(lambda: stack.state and stack.state.parts["board"].restarts == restarts + 1, "a new board")
    stack.until(stack.well, "a healthy board")
    checked = stack.cli("board", "check", "board", "--target", "onnx")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_stopped_service_stays_stopped_and_an_unknown_name_is_one_line(stack: Running) -> None:
    assert stack.cli("stack", "stop", "board").returncode == 0
    away = stack.cli("board", "check", "board")
    assert away.returncode == 3
    assert "does not answer" in away.stdout + away.stderr
    assert "board     stopped" in stack.cli("stack", "status").stdout
    assert stack.cli("stack", "start", "board").returncode == 0
    wrong = stack.cli("stack", "stop", "bord")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("nightjar: the stack has no service 'bord'; have database, ")


def test_services_of_a_killed_supervisor_are_ended_and_the_next_start_has_the_same_runs(stack: Running) -> None:
    state = stack.state
    assert state is not None
    runs = stack.ask("deployments/filter")
    os.kill(state.pid, 9)
    stack.until(lambda: start_time(state.pid) == 0, "the supervisor's end")
    assert start_time(state.parts["server"].pid), "this test needs services that outlive their supervisor"
    assert "no stack runs" in stack.cli("stack", "status").stderr
    up = stack.cli("stack", "up", "--detach")
    assert up.returncode == 0, up.stdout + up.stderr + stack.logs()
    after = stack.state
    assert after is not None
    assert after.ports == state.ports
    assert all(start_time(part.pid) != part.start_time for part in state.parts.values() if part.pid), (
        "an old part still runs"
    )
    assert stack.ask("deployments/filter")[0]["id"] in {deployment["id"] for deployment in runs}


def test_a_missing_program_is_one_line_with_the_command_that_installs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nightjar.cli.main", "stack", "up", "--folder", str(tmp_path / "stack")],
        env={**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},  # finds no program
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "`apt install " in done.stderr


def test_no_log_and_no_page_holds_the_password(stack: Running) -> None:
    password = (stack.folder / "stack" / "secrets" / "database_password").read_text()
    key = (stack.folder / "stack" / "secrets" / "board_user_key").read_text().splitlines()[1]
    listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    said = {"the process list": listed, "the logs": stack.logs(), "status": stack.cli("stack", "status").stdout}
    said["doctor"] = stack.cli("doctor").stdout
    assert not [place for place, text in said.items() if password in text or key in text]
