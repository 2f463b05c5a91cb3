"""Boards under a real Prefect server: one slot each, who waits is told by whom, and no secret in anything it keeps."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from nightjar.paths import reports_folder
from tests.flows.conftest import ROOT, Cli, write_speech
from tests.loopback import Loopback

pytestmark = pytest.mark.slow

SECRETS = {"NIGHTJAR_TEST_TOKEN": "hunter2-environment", "SSH_ASKPASS_WORD": "hunter2-passphrase"}
KEY_WORDS = "hunter2-key-path"


@pytest.fixture
def asked(tmp_path: Path, random_checkpoint: Path) -> list[str]:
    words = {f"c{number}": word for number, word in enumerate(("red", "blue", "stop"))}
    lists = {
        "--calibration-set": write_speech(tmp_path / "calibration", words, speaker="ada"),
        "--test-set": write_speech(tmp_path / "test", words, speaker="bob"),
    }
    speech = [str(word) for pair in lists.items() for word in pair]
    return ["port", "--model", "random", "--checkpoint", str(random_checkpoint), "--window", "5", *speech]


def everything(url: str) -> str:
    """Read all that a server keeps of runs: states, parameters, logs, artifacts, limits."""
    said = []
    for kind in ("flow_runs", "task_runs", "artifacts", "logs", "v2/concurrency_limits", "variables"):
        found, offset = [], 0
        while offset == len(found):  # a server gives 200 at most, and other tests use this one too
            answer = httpx.post(f"{url}/{kind}/filter", json={"limit": 200, "offset": offset}, timeout=20)
            found += answer.raise_for_status().json()
            offset += 200
        said += found
        if kind in ("flow_runs", "task_runs"):
            states = f"{url}/{kind.removesuffix('s')}_states/"
            for run in found:
                answer = httpx.get(states, params={f"{kind.removesuffix('s')}_id": run["id"]}, timeout=20)
                said += answer.raise_for_status().json()
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in said)


def test_a_board_has_a_slot_and_who_waits_is_told_and_nothing_keeps_a_secret(
    server: str, cli: Cli, loop: Loopback, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / KEY_WORDS
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", SECRETS["SSH_ASKPASS_WORD"], "-f", str(secret)], check=True
    )
    config = loop.configure(tmp_path / "config")
    config.write_text(config.read_text() + f"  IdentityFile {secret}\n")
    boards = loop.boards(tmp_path / "boards.toml", config=config)
    environment = {
        **SECRETS,
        "NIGHTJAR_BOARDS": str(boards),
        "PREFECT_API_URL": server,
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    store = tmp_path / "artifacts"

    code = (
        "import sys, time\nfrom nightjar.boards.config import find_board\nfrom nightjar.boards.ssh import SshBoard\n"
        "with SshBoard(find_board('loop')).locked():\n    print('held', flush=True)\n    time.sleep(300)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NIGHTJAR_BOARDS": str(boards)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    refused = cli(*asked, "--board", "loop", "--board-wait", "2", store=store, **environment)
    holder.kill()
    holder.communicate()
    assert refused.returncode == 4, refused.stderr + refused.stdout
    (line,) = [text for text in refused.stderr.splitlines() if text.startswith("nightjar: ")]
    assert "board loop is still locked by" in line
    assert f"process {holder.pid}" in line
    assert time.monotonic() - began < 120

    limit = httpx.get(f"{server}/v2/concurrency_limits/board:loop").json()
    assert limit["limit"] == 1
    assert limit["active_slots"] == 0, "the slot was not given back"

    # another run has the slot, and not yet the lock
    taken: dict[str, Any] = {"names": ["board:loop"], "slots": 1, "mode": "concurrency", "lease_duration": 300}
    lease = httpx.post(f"{server}/v2/concurrency_limits/increment-with-lease", json=taken)
    assert lease.is_success, lease.text
    waiting = cli(*asked, "--board", "loop", "--board-wait", "1", store=store, **environment)
    assert waiting.returncode == 4
    assert "board loop is still locked by another Prefect run after 1 s" in waiting.stderr
    freed = {"slots": 1, "lease_id": lease.json()["lease_id"]}
    assert httpx.post(f"{server}/v2/concurrency_limits/decrement-with-lease", json=freed).is_success

    done = cli(*asked, "--board", "loop", store=store, **environment)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    assert httpx.get(f"{server}/v2/concurrency_limits/board:loop").json()["active_slots"] == 0

    end = time.monotonic() + 60  # the client sends logs in the background
    while "board loop is locked by" not in (kept := everything(server)):
        assert time.monotonic() < end, "who holds it is not to be seen in the UI"
        time.sleep(1)
    time.sleep(3)  # for what else is on its way, which may hold a secret
    kept = everything(server)
    files = [
        path for top in (store, reports_folder() / "random-onnx-int8") for path in top.rglob("*") if path.is_file()
    ]
    texts = {"the server": kept, "the terminal": "".join(run.stdout + run.stderr for run in (refused, waiting, done))}
    texts |= {str(path): path.read_bytes().decode("latin-1") for path in files}
    texts |= {
        "the board": "".join(path.read_bytes().decode("latin-1") for path in loop.scratch.rglob("*") if path.is_file())
    }
    assert len(texts) > 20
    for place, text in texts.items():
        found = [word for word in (*SECRETS.values(), KEY_WORDS) if word in text]
        assert not found, f"{place} holds {found}"
