"""SIGKILL of server, database and worker during a night, in turn and together: it finishes and repeats nothing."""

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.flows.conftest import shipped_speech
from tests.stack.conftest import Running

pytestmark = pytest.mark.slow

VICTIMS = ("server", "database", "worker")
SEED = int(os.environ.get("NIGHTJAR_STACK_SEED", "20261120"))
ROUNDS = int(os.environ.get("NIGHTJAR_STACK_ROUNDS", "1"))
CONFIG = """
[defaults]
calibration_set = "calibration.jsonl"
test_set = "evaluation.jsonl"
calibration_samples = {samples}

[[cells]]
models = ["whisper-nano"]
targets = ["onnx"]
precisions = ["fp", "int8"]
"""


def night_config(folder: Path, samples: int) -> Path:
    """Write a night of two cells over a few clips; another number of samples is another calibration."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped_speech(folder, calibration=8, evaluation=6)
    path = folder / "night.toml"
    path.write_text(CONFIG.format(samples=samples))
    return path


def finished(store: Path) -> dict[str, tuple[int, int]]:
    """Return inode and mtime of every record: equal values mean that nothing ran again."""
    found = {}
    for path in store.glob("*/*/record.json"):
        stat = path.stat()
        found[f"{path.parent.parent.name}/{path.parent.name}"] = (stat.st_ino, stat.st_mtime_ns)
    return found


def started_night(stack: Running, config: Path, hand_out: bool) -> str:
    """Start a night as its schedule would; return the flow run's id.

    hand_out: its cells are dispatched to the work queues.
    """
    (deployment,) = stack.ask("deployments/filter", deployments={"name": {"any_": ["default"]}})
    asked = {"config": str(config), "hand_out": hand_out}
    made = stack.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=asked)
    return str(made["id"])


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_a_night_survives_kills_of_server_database_and_worker(stack: Running, place: Path, seed: int) -> None:
    chance = random.Random(seed)
    shutil.rmtree(stack.store, ignore_errors=True)  # no stage is cached
    order = chance.sample(VICTIMS, 3)
    rounds = [(name,) for name in order] + [tuple(order)]
    run = started_night(stack, night_config(place / f"night-{seed}", samples=20), hand_out=seed % 2 == 1)
    before = finished(stack.store)
    for victims in rounds:
        wanted = len(before) + chance.randint(1, 2)
        stack.until(
            lambda wanted=wanted: len(finished(stack.store)) >= wanted or ended(stack, run), f"{wanted} finished stages"
        )
        now = finished(stack.store)
        assert {stage: now[stage] for stage in before} == before, f"a finished stage ran again before {victims} died"
        assert not ended(stack, run), f"the night was over before {victims} could die"
        before = now
        restarts = {victim: stack.kill(victim) for victim in victims}
        for victim, count in restarts.items():
            stack.until(lambda v=victim, c=count: stack.state.parts[v].restarts > c, f"a new {victim}")  # type: ignore[union-attr]
        stack.until(stack.well, "a healthy stack")
        if "worker" in victims:
            revived = stack.cli("flows", "revive")
            assert revived.returncode == 0, revived.stdout + revived.stderr
    else:
        assert len(rounds) == 4
    stack.until(lambda: ended(stack, run), "the night's end")
    after = finished(stack.store)
    assert {stage: after[stage] for stage in before} == before, "a finished stage ran again"
    state = stack.run(run)["state"]
    assert state["type"] == "COMPLETED", state["message"]
    kinds = {stage.partition("/")[0] for stage in after}
    assert {"export", "harvest", "calibrate", "build", "evaluate", "judge", "report"} <= kinds


def ended(stack: Running, run: str) -> bool:
    """Tell whether a flow run has ended."""
    return stack.run(run)["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
