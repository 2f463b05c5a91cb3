"""An Android device by adb, which is a scripted double on PATH here; what runs there is the double of neuronrt."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from nightjar.cli.main import main
from nightjar.errors import BoardMissing
from nightjar.graphs.onnx_session import open_session
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import session_of
from nightjar.quantization.calibration_set import CalibrationSet
from targets import mtk as target
from targets.mtk.adb import open_runner
from tests.targets.mtk.conftest import Doubles

pytestmark = pytest.mark.slow

ADB = """
import os, shutil, subprocess, sys
from pathlib import Path
root, words = Path(os.environ["NIGHTJAR_DOUBLE_ADB"]), sys.argv[1:]
with (root / "calls.txt").open("a") as log:
    print(*words[:3], file=log)
def there(path):
    return root / path.lstrip("/")
if words == ["devices"]:
    print("List of devices attached\\nABC123\\tdevice\\nXYZ\\tunauthorized\\n")
elif words[:2] != ["-s", "ABC123"]:
    sys.exit("adb: device not found")
elif words[2] == "push":
    for each in words[3:-1]:
        if not there(words[-1]).is_dir():
            sys.exit(f"adb: error: remote {words[-1]}: No such file or directory")
        shutil.copyfile(each, there(words[-1]) / Path(each).name)
elif words[2] == "pull":
    for each in words[3:-1]:
        shutil.copyfile(there(each), Path(words[-1]) / Path(each).name)
elif words[2] == "shell":
    line = words[3].replace("/data/local", str(root / "data/local")).replace("getprop ro.soc.model", "echo MT8371")
    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, text=True)
    print(done.stdout.replace("\\n", "\\r\\n"), end="")
"""


@pytest.fixture
def device(tmp_path: Path, neuronrt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "device"
    root.mkdir()
    (neuronrt.parent / "adb.py").write_text(ADB)
    (neuronrt.parent / "adb").write_text(f'#!/bin/sh\nexec {sys.executable} {neuronrt.parent}/adb.py "$@"\n')
    (neuronrt.parent / "adb").chmod(0o755)
    monkeypatch.setenv("NIGHTJAR_DOUBLE_ADB", str(root))
    boards = tmp_path / "boards.toml"
    boards.write_text('[tablet]\ntarget = "mtk"\nadb = "ABC123"\n[other]\nadb = "XYZ"\n')
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(boards))
    return root


def test_a_device_is_a_board_of_its_own_runner(device: Path) -> None:
    mtk = plugin("targets", "mtk")
    found = board_of(mtk, "tablet")
    assert (found.tier, found.adb, found.runner) == ("device", "ABC123", "targets.mtk.adb")
    assert found.facts.soc == "MT8371"
    assert found.facts.runtimes["neuron"] == "8.2.16"
    assert session_of(plugin("models", "whisper", "decode"), mtk, found)[1].module == "targets.mtk.adb"
    board = found.connect()
    assert board.runners == {"mtk": "targets.mtk.adb"}
    assert "ABC123" not in json.dumps(found.identity()), "a device's serial is no part of a key"


def test_what_adb_cannot_reach_is_missing(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BoardMissing, match=r"adb has no device XYZ for board other; it has ABC123: connect it"):
        board_of(plugin("targets", "mtk"), "other")
    with pytest.raises(BoardMissing, match=r"is reached by adb, and target onnx has no adb.py"):
        board_of(plugin("targets", "onnx"), "other")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BoardMissing, match=r"does not answer \(no adb on PATH: `apt install adb`\)"):
        board_of(plugin("targets", "mtk"), "tablet")


def test_a_check_says_what_the_device_has(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["board", "check", "tablet"]) == 0
    said = capsys.readouterr().out
    assert "MT8371" in said
    assert "neuron 8.2.16" in said


def test_a_part_runs_there_and_gives_what_the_float_graph_gives(
    device: Path, doubles: Doubles, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.compile(cached / "graphs", None, target.Options(), tmp_path / "fp")
    parts = json.loads((tmp_path / "fp" / "binary.json").read_text())["parts"]
    monkeypatch.setenv("NIGHTJAR_ADB", "ABC123")
    (device / "data" / "local" / "tmp").mkdir(parents=True)
    runner = open_runner(tmp_path / "fp", {"cross": parts["cross"]})
    sample = next(CalibrationSet.open(cached / "calibration").samples("cross"))
    found = runner.run("cross", sample)
    wanted = open_session(onnx.load(cached / "graphs" / "cross.onnx"))
    for output, array in zip(wanted.get_outputs(), wanted.run(None, sample), strict=True):
        np.testing.assert_allclose(found[output.name], array, atol=1e-3)
    assert runner.inference_ms["cross"] == [7.0]
    monkeypatch.setenv("NIGHTJAR_DOUBLE_NEURONRT", "status")
    with pytest.raises(RuntimeError, match=r"neuronrt cannot run cross.dla: ERROR: .*denied \(exit status 255\)"):
        runner.run("cross", sample)
    folder = device / runner.there.lstrip("/")
    assert (folder / "cross.dla").is_file()
    runner.close()
    assert not folder.exists()
