"""SIGKILL at seeded moments: the same command finishes, and nothing that was finished is done again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nightjar.store.artifact import Store
from tests.flows.conftest import ROOT, Cli, write_speech

MODEL = ("--model", "random", "--checkpoint")
KILLS = int(os.environ.get("NIGHTJAR_KILLS", "10"))


def start(arguments: list[str], store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nightjar.cli.main", "port", *arguments],
        cwd=ROOT,
        env={**os.environ, "NIGHTJAR_STORE": str(store)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs us in the background ignores it
    )


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def finished_stages(store: Path) -> dict[tuple[str, str], str]:
    """Return when each stage there was finished, by stage and key."""
    records = store.glob("*/*/record.json")
    return {(p.parent.parent.name, p.parent.name): json.loads(p.read_text())["finished"] for p in records}


def finished_clips(store: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the lines of unfinished evaluations, by work folder and clip."""
    found = {}
    for path in store.glob(".work/evaluate-*/kept/lines.jsonl"):
        for text in path.read_text().split("\n")[:-1]:
            line = json.loads(text)
            found[(path.parent.parent.name, line["id"])] = line["seconds"]
    return found


def test_kills_lose_nothing_that_was_finished(cli: Cli, tmp_path: Path, random_checkpoint: Path) -> None:
    words = ("red", "blue", "stop", "start", "left", "right")
    calibration = write_speech(tmp_path / "calibration", {f"c{i}": word for i, word in enumerate(words)}, speaker="ada")
    test = write_speech(tmp_path / "test", {f"t{i}": word for i, word in enumerate(words)}, speaker="bob")
    arguments = [*MODEL, str(random_checkpoint), "--calibration-set", str(calibration), "--test-set", str(test)]
    store, chance = tmp_path / "artifacts", random.Random(20261120)
    stages: dict[tuple[str, str], str] = {}
    clips: dict[tuple[str, str], Any] = {}
    for _ in range(KILLS):
        process = start(arguments, store)
        time.sleep(chance.uniform(1.5, 9.0))
        victims = chance.choice(["host", "session", "both"])
        for pid in (children_of(process.pid) if victims != "host" else []) + (
            [process.pid] if victims != "session" else []
        ):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(timeout=300)
        now = finished_stages(store)
        assert {key: now[key] for key in stages} == stages, "a finished stage ran again"
        stages = now
        clips |= finished_clips(store)
    done = cli("port", *arguments, store=store)
    assert done.returncode in (0, 1), done.stderr
    final = finished_stages(store)
    assert {key: final[key] for key in stages} == stages
    for (work, clip), seconds in clips.items():
        lines = (store / "evaluate" / work.removeprefix("evaluate-") / "hypotheses.jsonl").read_text().split("\n")[:-1]
        kept = next(line for line in map(json.loads, lines) if line["id"] == clip)
        assert kept["seconds"] == seconds, f"{clip} was computed again"
    for stage, key in final:
        record, damage = Store(store).find(stage, key)
        assert record is not None, damage
    assert not list(store.glob(".work/*")), "scratch was left behind"


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(cli: Cli, tmp_path: Path, random_checkpoint: Path) -> None:
    calibration = write_speech(tmp_path / "calibration", {"c0": "red", "c1": "blue"}, speaker="ada")
    test = write_speech(tmp_path / "test", {f"t{i}": "stop" for i in range(40)}, speaker="bob")
    arguments = [*MODEL, str(random_checkpoint), "--calibration-set", str(calibration), "--test-set", str(test)]
    store = tmp_path / "artifacts"
    process = start(arguments, store)
    deadline = time.monotonic() + 120
    while not list(store.glob("stock/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    before = finished_stages(store)
    assert before
    done = cli("port", *arguments, store=store)
    assert done.returncode in (0, 1), done.stderr
    after = finished_stages(store)
    assert {key: after[key] for key in before} == before


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_is_one_line_and_exit_4_and_the_store_stays_sound(
    cli: Cli, tmp_path: Path, random_checkpoint: Path
) -> None:
    calibration = write_speech(tmp_path / "calibration", {"c0": "red", "c1": "blue"}, speaker="ada")
    test = write_speech(tmp_path / "test", {"t0": "stop", "t1": "start"}, speaker="bob")
    arguments = [*MODEL, str(random_checkpoint), "--calibration-set", str(calibration), "--test-set", str(test)]
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not mount a tmpfs")
    try:
        full = cli("port", *arguments, store=small / "artifacts")
        assert full.returncode == 4, full.stdout + full.stderr
        assert len(full.stderr.strip().splitlines()) == 1
        assert "No space left" in full.stderr
        store = Store(small / "artifacts")
        for stage, key in finished_stages(small / "artifacts"):
            record, damage = store.find(stage, key)
            assert record is not None, damage
        subprocess.run(["mount", "-o", "remount,size=400m", str(small)], check=True)
        assert cli("port", *arguments, store=small / "artifacts").returncode in (0, 1)
    finally:
        subprocess.run(["umount", str(small)], check=True)
