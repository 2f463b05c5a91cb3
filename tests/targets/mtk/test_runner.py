"""The board's runners against a compiled double of the Neuron runtime and a double of its program."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.calibration_set import CalibrationSet
from targets import mtk as target
from targets.mtk.preflight import fit, versions
from targets.mtk.runner import NeuronrtRunner, NeuronRunner, allocate, open_library, open_runner
from tests.targets.mtk.conftest import Doubles

X = {"name": "x", "shape": [1, 3, 10], "dtype": "float32"}
Y = {**X, "name": "y"}


def network(folder: Path, mode: int = 0, out_bytes: int = 4, row: int = 48, inputs: int = 2) -> dict[str, Any]:
    """Write a network of the C double: 2 inputs and 1 output of 30 elements, rows of 10 padded to 16."""
    (folder / "part.dla").write_text(f"NEURON {inputs} 1 30 {out_bytes} {row} {mode}")
    return {"p": {"runner": "mtk", "file": "part.dla", "inputs": [X, {**X, "name": "z"}], "outputs": [Y]}}


@pytest.fixture
def c(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_NEURON", str(library))


def test_the_library_runs_many_times_in_the_same_memory(c: None, tmp_path: Path) -> None:
    runner = open_runner(tmp_path, network(tmp_path))
    assert isinstance(runner, NeuronRunner)
    for number in (1.0, 2.0):
        x = np.full((1, 3, 10), number, np.float32)
        found = runner.run("p", {"x": x}, {"z": 10 * x})
        np.testing.assert_array_equal(found["y"], np.full((1, 3, 10), 22 * number))
    assert len(runner.inference_ms["p"]) == 2
    assert runner.load_s["p"] > 0, "loading is timed apart"
    runner.close()


def test_a_suppressed_output_has_padded_rows(c: None, tmp_path: Path) -> None:
    parts = network(tmp_path, out_bytes=2)
    parts["p"]["bridge"] = "disallowed"
    runner = open_runner(tmp_path, parts)
    network_ = runner.handles["p"]  # type: ignore[attr-defined]
    assert network_.outputs[0].base.shape == (1, 3, 16)
    assert network_.outputs[0].base.dtype == np.float16
    runner.close()
    with pytest.raises(RuntimeError, match="wants 7 bytes for y"):
        allocate("x", Y, 7, padded=True)


def test_a_runtime_that_latches_its_first_input_is_refused(c: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="latched the first; set NIGHTJAR_NEURON=neuronrt"):
        open_runner(tmp_path, network(tmp_path, mode=1))


def test_what_the_runtime_says_no_to_is_one_line(c: None, library: Path, tmp_path: Path) -> None:
    cases = [
        (2, 2, "cannot run part.dla: error 6, runtime error"),
        (0, 3, "has 3 inputs where 2 are expected"),
    ]
    for mode, inputs, said in cases:
        with pytest.raises(RuntimeError, match=said):
            open_runner(tmp_path, network(tmp_path, mode=mode, inputs=inputs))
    parts = network(tmp_path)
    (tmp_path / "part.dla").write_text("V7")
    with pytest.raises(RuntimeError, match=r"cannot create part.dla: error 4, bad data; a .dla of another SDK version"):
        open_runner(tmp_path, parts)
    with pytest.raises(RuntimeError, match=r"no file .*other.dla for part 'p'"):
        open_runner(tmp_path, {"p": {**parts["p"], "file": "other.dla"}})
    assert open_library((str(tmp_path / "part.dla"), "libc.so.6")) is None, "what is no such library is passed over"


def test_shapes_and_names_are_held_against_the_part(c: None, tmp_path: Path) -> None:
    runner = open_runner(tmp_path, network(tmp_path))
    x = np.zeros((1, 3, 10), np.float32)
    for part, given, said in (
        ("q", {"x": x}, "no part 'q' here: have p"),
        ("p", {"x": x}, "p takes x, z, not x"),
        ("p", {"x": x, "z": x[0]}, r"p takes z as \(1, 3, 10\), not \(3, 10\)"),
    ):
        with pytest.raises(RuntimeError, match=said):
            runner.run(part, given)
    runner.close()


@pytest.mark.slow
def test_neuronrt_gives_what_the_float_graph_gives(
    doubles: Doubles, cached: Path, neuronrt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_NEURON", "neuronrt")
    target.compile(cached / "graphs", None, target.Options(), tmp_path / "fp")
    parts = json.loads((tmp_path / "fp" / "binary.json").read_text())["parts"]
    sample = next(CalibrationSet.open(cached / "calibration").samples("decoder"))
    wanted = open_session(onnx.load(cached / "graphs" / "decoder.onnx"))
    runner = open_runner(tmp_path / "fp", {"decoder": parts["decoder"]})
    assert isinstance(runner, NeuronrtRunner)
    found = runner.run("decoder", sample)
    for output, array in zip(wanted.get_outputs(), wanted.run(None, sample), strict=True):
        np.testing.assert_allclose(found[output.name], array, atol=1e-3)
    assert runner.inference_ms["decoder"] == [7.0], "what neuronrt says, not what starting it took"
    for inject, said in (
        ("status", r"neuronrt cannot run decoder.dla \(255\): ERROR: /dev/apusys: Permission denied"),
        ("nothing", "neuronrt wrote no logits"),
        ("silent", "says no total inference time"),
    ):
        monkeypatch.setenv("NIGHTJAR_DOUBLE_NEURONRT", inject)
        with pytest.raises(RuntimeError, match=said):
            runner.run("decoder", sample)
    monkeypatch.setenv("NIGHTJAR_DOUBLE_NEURONRT", "handles")
    with pytest.raises(RuntimeError, match="describes 1 inputs of decoder where 10 are expected"):
        open_runner(tmp_path / "fp", {"decoder": parts["decoder"]})
    monkeypatch.setenv("NIGHTJAR_DOUBLE_NEURONRT", "")
    other = [{**parts["decoder"]["inputs"][0], "shape": [1, 1, 33]}, *parts["decoder"]["inputs"][1:]]
    with pytest.raises(
        RuntimeError, match=r"has handle 0 of its inputs as \[1, 1, 32\], and embedding is \[1, 1, 33\]"
    ):
        open_runner(tmp_path / "fp", {"decoder": {**parts["decoder"], "inputs": other}})


def test_a_board_without_a_runtime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NIGHTJAR_NEURON", "neuronrt")
    with pytest.raises(RuntimeError, match="no Neuron runtime on this board: install mediatek-libneuron"):
        open_runner(tmp_path, network(tmp_path))


def test_a_board_says_which_runtime_it_has(neuronrt: Path) -> None:
    assert versions()["neuron"] == "8.2.16"


@pytest.mark.parametrize(
    ("board", "level", "said"),
    [
        ({"neuron": "8.2.16", "apusys": "open"}, None, ""),
        ({"neuron": "7.3.15", "apusys": "open"}, "refuse", "another major version does not load"),
        ({"neuron": "8.2.16", "apusys": "closed"}, "refuse", "udev rule"),
        ({"neuron": "8.2.16", "apusys": "absent"}, "warn", "no /dev/apusys"),
        ({"neuron": "unknown", "apusys": "open"}, "warn", "does not say which Neuron runtime"),
        ({"neuron": "absent", "apusys": "open"}, "refuse", "install mediatek-libneuron"),
    ],
)
def test_what_stands_against_a_run_is_said_before(board: dict[str, str], level: str | None, said: str) -> None:
    found = list(fit({"ncc-tflite": "8.2.19"}, board))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(said in finding.message for finding in found)
