"""Files made elsewhere are scored as a port scores its own, or refused in one line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from models.whisper.export import export
from nightjar.cli.main import main
from nightjar.graphs.onnx_graph import rename_tensors
from nightjar.plugins.recipe import Recipe
from tests.flows.conftest import write_speech

Command = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def store(shared_store: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTJAR_STORE", str(shared_store))
        yield shared_store


@pytest.fixture(autouse=True)
def own_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTJAR_REPORTS", str(tmp_path / "reports"))
    return tmp_path


@pytest.fixture(scope="module")
def model(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    test = write_speech(tmp_path_factory.mktemp("test"), {"given-0": "stop", "given-1": "start"}, speaker="bob")
    return ["--model", "random", "--checkpoint", str(random_checkpoint), "--test-set", str(test)]


@pytest.fixture(scope="module")
def zoo(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs with the names and shapes of rknn_model_zoo's, of a 4 s window."""
    folder = tmp_path_factory.mktemp("zoo")
    export(random_checkpoint, Recipe(window_s=4, decoder="window", positional="last"), folder)
    encoder = rename_tensors(onnx.load(folder / "encoder.onnx"), {"mel": "x", "hidden": "out"})
    onnx.save(encoder, folder / "encoder.onnx")
    return folder


@pytest.fixture
def run(tmp_path: Path, model: list[str]) -> Command:
    def run(command: str, *arguments: object) -> tuple[int, dict[str, Any]]:
        written = tmp_path / f"{command}.json"
        code = main([command, *map(str, arguments), *model, "--json", str(written)])
        return code, json.loads(written.read_text())

    return run


def refused(capsys: pytest.CaptureFixture[str], model: list[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), *model]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("nightjar: ")
    assert "\n" not in error
    return error


def test_our_own_graphs_score_as_their_port(run: Command, store: Path, tmp_path: Path, own_reports: Path) -> None:
    calibration = write_speech(tmp_path / "calibration", {"c0": "red"})
    code, ported = run("port", "--precision", "fp", "--calibration-set", calibration)
    built = store / "build" / ported["made_from"]["binary"]["key"]
    code_given, given = run("evaluate", *sorted(built.glob("*.onnx"), reverse=True))
    assert code_given == code
    assert given.keys() == ported.keys()
    assert given["precision"] == "as given"
    same = ("wer", "wer_float", "wer_stock", "delta_wer", "interval", "verdict", "clips", "words", "skipped")
    for name in (*same, "size_bytes", "hypotheses", "gates", "int8_mac_share", "recipe", "tier", "target"):
        assert given[name] == ported[name], name
    assert [score["counts"] for score in given["scores"]] == [score["counts"] for score in ported["scores"]]
    page = (own_reports / given["report"]).read_text()
    assert "as given" in page[page.index("<title>") : page.index("</title>")]
    again, cached = run("evaluate", *built.glob("*.onnx"))
    assert again == code
    assert all(stage["cached"] for stage in cached["stages"])


def test_the_model_zoos_graphs_are_recognised(run: Command, zoo: Path) -> None:
    code, results = run("evaluate", zoo / "encoder.onnx", zoo / "decoder.onnx")
    recipe = results["recipe"]
    assert (recipe["window_s"], recipe["decoder"], recipe["positional"]) == (4, "window", "last")
    assert results["wer"] == results["wer_float"]
    binary = next(score for score in results["scores"] if score["subject"] == "binary")
    reference = next(score for score in results["scores"] if score["subject"] == "float")
    assert binary["counts"] == reference["counts"]
    assert code == (0 if results["verdict"] == "PASS" else 1)


def test_a_budget_that_is_not_kept_ends_with_1(run: Command, zoo: Path) -> None:
    # Weights of noise lose more than half a point to stock Whisper in this loop, whatever the binary does.
    code, results = run("evaluate", zoo / "encoder.onnx", zoo / "decoder.onnx", "--max-delta-wer", "0")
    assert results["verdict"] in ("FAIL", "UNDECIDED")
    assert code == 1


def test_a_foreign_input_is_named(
    zoo: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = onnx.load(zoo / "decoder.onnx")
    graph.graph.input.append(helper.make_tensor_value_info("beam_width", TensorProto.INT32, [1, 3]))
    onnx.save(graph, tmp_path / "foreign.onnx")
    line = refused(capsys, model, zoo / "encoder.onnx", tmp_path / "foreign.onnx")
    assert "foreign.onnx: input beam_width (1, 3) int32 is not understood" in line
    assert "rknn_model_zoo" in line


def test_parts_too_few_too_many_or_none(
    zoo: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, decoder = zoo / "encoder.onnx", zoo / "decoder.onnx"
    assert "no encoder is among" in refused(capsys, model, decoder)
    assert "no decoder is among" in refused(capsys, model, encoder)
    (tmp_path / "copy.onnx").write_bytes(encoder.read_bytes())
    assert "are both the encoder" in refused(capsys, model, encoder, tmp_path / "copy.onnx", decoder)
    assert "no-such.onnx" in refused(capsys, model, encoder, tmp_path / "no-such.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    assert "text.onnx is not an ONNX graph" in refused(capsys, model, encoder, tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").touch()
    assert "empty.onnx is not an ONNX graph" in refused(capsys, model, encoder, tmp_path / "empty.onnx")


def test_shapes_of_another_checkpoint_are_named(
    zoo: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = onnx.load(zoo / "decoder.onnx")
    graph.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 51865
    onnx.save(graph, tmp_path / "multilingual.onnx")
    line = refused(capsys, model, zoo / "encoder.onnx", tmp_path / "multilingual.onnx")
    assert "out (1, 12, 51865) float32 does not fit" in line
    assert "out (1, 12, 51864) float32" in line


def test_open_dimensions_are_refused(
    zoo: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = onnx.load(zoo / "encoder.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "frames"
    onnx.save(graph, tmp_path / "open.onnx")
    assert "x (1, 80, frames) has no fixed shape" in refused(
        capsys, model, tmp_path / "open.onnx", zoo / "decoder.onnx"
    )


def test_a_target_that_takes_no_files_says_which_do(
    zoo: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, model, zoo / "encoder.onnx", "--target", "torchscript")
    assert "'torchscript' cannot take files compiled elsewhere" in line
    assert "--target onnx" in line
