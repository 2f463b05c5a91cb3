"""Which stages an edit, a library or damage re-runs: exactly those that depend on it, as `--plan` predicted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import ROOT, write_speech

pytestmark = pytest.mark.slow

STAGES = {
    *("export", "build reference", "build float", "harvest", "calibrate", "build binary"),
    *("stock", "evaluate float", "evaluate binary", "judge", "report"),
}
SESSIONS = {"harvest", "evaluate float", "evaluate binary"}
BUILDS = {"build reference", "build float", "build binary"}
LATE = {"judge", "report"}

# What must miss when a comment is added to a file, with every artifact still there.
EDITS = {
    "nightjar/scoring/wer.py": LATE,
    "nightjar/scoring/verdict.py": LATE,
    "nightjar/scoring/score.py": LATE,
    "nightjar/report/page.py": {"report"},
    "nightjar/cli/console.py": set(),
    "nightjar/cli/main.py": set(),
    "nightjar/cli/doctor.py": set(),
    "nightjar/store/artifact.py": SESSIONS | {"report"},
    "nightjar/device/session.py": SESSIONS,
    "nightjar/boards/board.py": SESSIONS,
    "nightjar/device/log_mel.py": SESSIONS | {"calibrate"},
    "nightjar/quantization/calibration_set.py": {"calibrate", "build reference", "build float", "build binary"},
    "nightjar/plugins/recipe.py": {"export", *BUILDS},
    "models/whisper/export.py": {"export"},
    "models/whisper/surgery.py": {"export", "stock"},
    "models/whisper/checkpoint.py": {"export", "stock"},
    "models/whisper/decode.py": SESSIONS | {"calibrate"},
    "models/whisper/tokens.py": {"export", "stock", "evaluate float", "evaluate binary"},
    "models/whisper/calibrate.py": {"calibrate"},
    "models/whisper/stock.py": {"stock"},
    "targets/onnx/quantize.py": BUILDS,
    "targets/onnx/attention_fusion.py": BUILDS,
    "targets/onnx/runner.py": SESSIONS | {"calibrate"},
    "targets/torchscript/runner.py": set(),
    "tasks/stage.py": set(),
    "tasks/judge.py": LATE,
    "tasks/publish.py": set(),
    "flows/port.py": set(),
    "README.md": set(),
    "targets/onnx/README.md": set(),
    "targets/onnx/results.toml": set(),
    "docs/design.md": set(),
}

PLANNER = """
import json, pathlib, sys
from flows.port import port
from nightjar.request import PortRequest
from nightjar.store.remote import open_store
from tasks.stage import Run, running

request = PortRequest(model="random", checkpoint="random.pt", calibration_set=sys.argv[1], test_set=sys.argv[2])
for name in ["", *sys.argv[3:]]:
    path = pathlib.Path(name)
    text = path.read_text() if name else ""
    if name:
        path.write_text(text + "\\n# edited\\n")
    with running(Run(open_store(), plan=True)) as run:
        port.fn(request)
    if name:
        path.write_text(text)
    print(json.dumps({"edit": name, "misses": {o.name: o.why for o in run.outcomes if not o.cached}}), flush=True)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A copy of this project's code, with one finished port in its store."""
    copy = tmp_path_factory.mktemp("checkout") / "project"
    for name in ("nightjar", "models", "targets", "tasks", "flows", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "README.md", copy / "README.md")
    shutil.copyfile(random_checkpoint, copy / "random.pt")
    write_speech(copy / "calibration", {"c0": "red", "c1": "blue"}, speaker="ada")
    write_speech(copy / "test", {"t0": "stop", "t1": "start"}, speaker="bob")
    done = run(copy, "-m", "nightjar.cli.main", "port", *speech(copy))
    assert done.returncode in (0, 1), done.stderr
    return copy


def speech(checkout: Path) -> list[str]:
    lists = ["--calibration-set", f"{checkout}/calibration/speech.jsonl", "--test-set", f"{checkout}/test/speech.jsonl"]
    return ["--model", "random", "--checkpoint", f"{checkout}/random.pt", *lists]


def run(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "NIGHTJAR_STORE")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=clean | {"PYTHONPATH": str(checkout)} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def planned(checkout: Path, *edits: str) -> dict[str, dict[str, str]]:
    """Return, per edit, the stages that a plan would run and why; "" is no edit."""
    lists = [f"{checkout}/calibration/speech.jsonl", f"{checkout}/test/speech.jsonl"]
    done = run(checkout, "-c", PLANNER, *lists, *edits)
    assert done.returncode == 0, done.stderr
    return {entry["edit"]: entry["misses"] for entry in map(json.loads, done.stdout.splitlines())}


def test_each_edit_misses_exactly_where_it_counts(checkout: Path) -> None:
    plans = planned(checkout, *EDITS)
    assert plans.pop("") == {}
    wrong = {}
    for edit, misses in plans.items():
        own = {stage for stage, why in misses.items() if not why.startswith("depends on")}
        # A build that waits for another stage is missed for that reason, whatever else changed.
        waiting = set(misses) - own
        if not (own <= EDITS[edit] and EDITS[edit] <= own | waiting):
            wrong[edit] = {"missed": sorted(own), "expected": sorted(EDITS[edit])}
        for stage in own:
            assert edit in misses[stage], f"{stage} does not name {edit}: {misses[stage]}"
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_library_version_misses_where_the_library_is_called(checkout: Path) -> None:
    bumped = (
        "import nightjar.store.fingerprint as c\nold = c.version\n"
        "c.version = lambda top: '99' if top == 'onnx' else old(top)\n"
    )
    code = PLANNER.replace("request =", bumped + "request =")
    lists = [f"{checkout}/calibration/speech.jsonl", f"{checkout}/test/speech.jsonl"]
    done = run(checkout, "-c", code, *lists)
    misses = json.loads(done.stdout)["misses"]
    own = {stage for stage, why in misses.items() if "library onnx" in why}
    assert "export" in own <= {"export", *BUILDS}, misses
    assert {"build reference", "build float"} <= misses.keys()
    assert "stock" not in misses


def test_the_plan_of_a_damaged_store_is_what_then_runs(checkout: Path) -> None:
    store = checkout / "artifacts"
    hidden = next((store / "harvest").glob("*/*.npy"))
    data = bytearray(hidden.read_bytes())
    data[-1] ^= 1
    hidden.write_bytes(data)
    shutil.rmtree(next((store / "stock").iterdir()))
    os.truncate(next((store / "judge").glob("*/record.json")), 10)
    misses = planned(checkout)[""]
    assert misses["harvest"] == f"{hidden.name} was altered"
    assert misses["stock"].startswith("first run")
    assert {"calibrate", "build binary", "judge", "report"} <= misses.keys()
    done = run(checkout, "-m", "nightjar.cli.main", "port", *speech(checkout), "--json", "again.json")
    assert done.returncode in (0, 1), done.stderr
    ran = {s["name"] for s in json.loads((checkout / "again.json").read_text())["stages"] if not s["cached"]}
    # The same bytes come back, so what only depended on them is taken from the store after all.
    assert ran == {"harvest", "stock", "judge", "report"}
    assert planned(checkout)[""] == {}


def test_another_folder_with_the_same_content_hits(checkout: Path, tmp_path: Path) -> None:
    for name in ("calibration", "test"):
        shutil.copytree(checkout / name, tmp_path / name)
    done = run(checkout, "-c", PLANNER, f"{tmp_path}/calibration/speech.jsonl", f"{tmp_path}/test/speech.jsonl")
    assert json.loads(done.stdout)["misses"] == {}
