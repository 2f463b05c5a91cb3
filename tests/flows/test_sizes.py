"""Sizes: a large model's weights lie beside its graphs, its sizes are known before the export, and so is a refusal."""

import json
import re
from pathlib import Path

import pytest

from models.whisper.export import export, part_bytes
from nightjar.cli.main import main
from nightjar.graphs import onnx_file
from nightjar.plugins.recipe import Recipe
from nightjar.speech.manifest import load_speech
from targets.mtk import stand_in
from tests.flows.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")

NANO = ROOT / "data" / "whisper-nano" / "whisper-nano.pt"
LIMIT = (1_000_000, "this test's compiler ends at 1 MB")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(window_s=5),
        Recipe(window_s=5, decoder="static", decoder_length=32, host_embedding=True, logits_slices=4),
        Recipe(window_s=5, decoder="window", conv2d=True, layer_norm="primitives"),
    ],
    ids=lambda recipe: recipe.decoder,
)
def test_the_sizes_before_the_export_are_those_after_it(recipe: Recipe, tmp_path: Path) -> None:
    export(NANO, recipe, tmp_path)
    for part, size in part_bytes(NANO, recipe, clamp=False).items():
        written = (tmp_path / f"{part}.onnx").stat().st_size
        assert size == pytest.approx(written, rel=0.05, abs=300_000), part  # the file has the nodes too


def test_a_plan_prints_the_size_of_each_part(own_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["port", "--model", "whisper-nano", "--precision", "fp", "--plan"]) == 0
    printed = capsys.readouterr().out
    for part, size in part_bytes(NANO, Recipe(), clamp=True).items():
        line = rf"weights of {part} +{size / 1e6:.1f} MB float32, {size / 2e6:.1f} MB float16, {size / 4e6:.1f} MB int8"
        assert re.search(line, printed), printed
    assert not list(own_store.glob("*/*/record.json"))


@pytest.mark.parametrize("precision", ["fp", "int8"])
def test_a_part_that_the_compiler_cannot_take_is_refused_before_anything_runs(
    precision: str, own_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stand_in, "PART_LIMIT", LIMIT)
    command = ["port", "--model", "whisper-nano", "--target", "mtk", "--board", "stand-in", "--precision", precision]
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert re.fullmatch(
        r"nightjar: target mtk.stand_in does not take the encoder, 2 MB of float32 weights: this test's compiler ends "
        r"at 1 MB; pass a smaller --model, or a --target without this limit \(`nightjar targets`\)",
        error,
    )
    assert not list(own_store.glob("*/*/record.json"))
    assert main([*command, "--plan"]) == 2


def test_lint_names_the_part_that_the_compiler_cannot_take(
    own_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("targets.mtk.PART_LIMIT", LIMIT)
    assert main(["lint", "--model", "whisper-nano", "--target", "mtk", "--json", str(tmp_path / "found.json")]) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    refused = {entry["part"]: entry for entry in found["recipe"]}
    assert refused.keys() == {"encoder", "decoder"}  # cross is smaller
    assert refused["decoder"]["level"] == "refuse"
    assert re.search(r"\d\d MB of float32 weights: this test's compiler ends at 1 MB", refused["decoder"]["why"])
    assert "a --target without this limit" in capsys.readouterr().out
    assert not list(own_store.glob("*/*/record.json"))  # nothing was exported


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp", "int8"])
def test_weights_beside_the_graph_give_the_same_text(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole port with the limit at 100 kB; the session gets the weights' files too."""
    clips = [str(clip.audio) for clip in load_speech(NANO.parent / "evaluation.jsonl")[:3]]
    command = ["transcribe", *clips, "--model", "whisper-nano", "--precision", precision, "--calibration-samples", "8"]
    texts = {}
    for name, limit in (("one file", onnx_file.MOST_BYTES), ("two files", 100_000)):
        store = tmp_path / name
        monkeypatch.setenv("NIGHTJAR_STORE", str(store))
        monkeypatch.setattr(onnx_file, "MOST_BYTES", limit)
        assert main([*command, "--format", "txt"]) == 0
        texts[name] = capsys.readouterr().out
        beside = {path.name for path in store.rglob("*.data") if "build" in str(path.relative_to(store))}
        assert ("encoder.onnx.data" in beside) == (name == "two files")
    assert texts["one file"].strip()
    assert texts["one file"] == texts["two files"]
