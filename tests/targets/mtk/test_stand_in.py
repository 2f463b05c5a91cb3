"""The stand-in with its real packages: what LiteRT gives, what is int8, and the lint on real .tflite files."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from nightjar.cli.main import main
from nightjar.errors import BadInput, BadOptions, Broken, Missing, ToolchainMissing
from nightjar.graphs.fusion import fuse
from nightjar.plugins.lint import place_of
from nightjar.plugins.recipe import Recipe
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import toolchain
from targets import mtk
from targets.mtk import lint, stand_in
from targets.mtk.tflite import read
from targets.mtk.tflite_mapping import match_operators
from tests.conftest import need
from tests.targets.mtk.conftest import ROOT, prepared

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def sdk() -> None:
    try:
        toolchain("mtk.stand_in")
    except ToolchainMissing as error:
        need("mtk.stand_in", False, str(error))


@pytest.fixture(scope="module")
def quantized(cached: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized")
    stand_in.quantization(cached / "graphs", cached / "calibration", stand_in.Options(samples=4), out)
    return out


def parts_of(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())["parts"]
    return found


def test_every_group_of_the_graphs_is_found_in_the_real_tflite(cached: Path, quantized: Path) -> None:
    for part in ("encoder", "cross", "decoder"):
        graph = onnx.load(cached / "graphs" / f"{part}.onnx")
        model = read(quantized / f"{part}.tflite")
        twins = match_operators(graph, model)
        kinds = {group.tensor: group.kind for group in fuse(graph)}
        assert all(twins.values()), [name for name, numbers in twins.items() if not numbers]
        wanted = {
            "gelu": "GELU",
            "attention": "SOFTMAX",
            "linear": "FULLY_CONNECTED",
            "conv": "CONV_2D",
            "norm": "RSQRT",
        }
        for name, numbers in twins.items():
            if kinds[name] in wanted:
                assert wanted[kinds[name]] in [model.ops[number].op for number in numbers], name
        several = [number for numbers in twins.values() for number in numbers]
        assert len(several) == len(set(several)), "an operator is of one group"


def test_another_models_tflite_is_refused(random_checkpoint: Path, quantized: Path, cached: Path) -> None:
    with pytest.raises(Broken, match=r"no operator of the .tflite has the weights of"):
        match_operators(onnx.load(cached / "graphs" / "encoder.onnx"), read(quantized / "cross.tflite"))
    with pytest.raises(Broken, match=r"is no .tflite file"):
        read(cached / "graphs" / "encoder.onnx")


def test_int8_and_w8a16_are_counted_in_the_file(cached: Path, quantized: Path, tmp_path: Path) -> None:
    for precision in ("int8", "w8a16"):
        options = stand_in.Options(precision=precision)
        stand_in.compile(cached / "graphs", None, options, tmp_path / precision, quantized=quantized)
    int8, wide = parts_of(tmp_path / "int8"), parts_of(tmp_path / "w8a16")
    assert int8["encoder"]["int8_mac_share"] == int8["cross"]["int8_mac_share"] == 1.0
    assert int8["encoder"]["size_bytes"] < 0.5 * (quantized / "encoder.tflite").stat().st_size
    assert 0.9 < int8["decoder"]["int8_mac_share"] < 1, "attention with a mask has 16 bits"
    assert int8["decoder"]["w8a16_mac_share"] > 0
    assert {name: part["w8a16_mac_share"] for name, part in wide.items()} == {"encoder": 1, "cross": 1, "decoder": 1}
    assert all(part["runner"] == "mtk.stand_in" and "stand-in" in part["toolkit"] for part in int8.values())


def test_a_plan_and_float_nodes_choose_layers(cached: Path, quantized: Path, tmp_path: Path) -> None:
    groups = fuse(onnx.load(cached / "graphs" / "encoder.onnx"))
    kept = [group.tensor for group in groups if group.kind == "attention"]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"float": {"encoder": kept}, "whole": ["cross", "decoder"], "rewrites": {}}))
    auto = stand_in.Options(precision="auto", float_nodes=("encoder:/conv1/*",))
    stand_in.compile(cached / "graphs", None, auto, tmp_path / "out", plan=plan, quantized=quantized)
    found = parts_of(tmp_path / "out")
    macs = {group.tensor: group.macs for group in groups}
    share = sum(macs[name] for name in kept) / sum(macs.values())
    conv = next(group.macs for group in groups if group.kind == "conv") / sum(macs.values())
    assert found["encoder"]["w8a16_mac_share"] == pytest.approx(share, abs=0.01)
    assert found["encoder"]["int8_mac_share"] == pytest.approx(1 - share - conv, abs=0.01)
    assert found["decoder"]["int8_mac_share"] == found["cross"]["int8_mac_share"] == 0


def test_what_cannot_be_built_is_said(cached: Path, quantized: Path, tmp_path: Path) -> None:
    graphs = cached / "graphs"
    with pytest.raises(BadOptions, match="needs the plan of a precision search"):
        stand_in.compile(graphs, None, stand_in.Options(precision="auto"), tmp_path)
    with pytest.raises(BadOptions, match="int8 needs calibration data"):
        stand_in.compile(graphs, None, stand_in.Options(precision="int8"), tmp_path)
    nothing = stand_in.Options(precision="int8", float_nodes=("encoder:*",))
    with pytest.raises(Broken, match="came out without one int8 product"):
        stand_in.compile(graphs, None, nothing, tmp_path, quantized=quantized)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "encoder.tflite").symlink_to(quantized / "encoder.tflite")
    with pytest.raises(BadInput, match="ranges come with a float part"):
        stand_in.compile(graphs, None, stand_in.Options(precision="int8"), tmp_path, quantized=tmp_path / "half")


def test_the_lint_catches_a_planted_embedding_and_leaves_the_recipe_alone(
    random_checkpoint: Path, quantized: Path, tmp_path: Path
) -> None:
    from models.whisper.export import export

    export(random_checkpoint, Recipe(), tmp_path, clamp=True)
    found = [finding for finding in lint.lint(tmp_path) if finding.level == "refuse"]
    assert sorted(finding.op for finding in found) == ["EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP", "input", "input"]
    planted = next(finding for finding in found if finding.place == "token table")
    assert planted.part == "decoder"
    assert "no GATHER" in planted.why
    assert "host embedding" in planted.remedy
    assert planted.node == "CachedDecoder/Embedding_token_embedding;1"
    for part in ("encoder", "cross", "decoder"):
        assert list(lint.of_tflite(part, read(quantized / f"{part}.tflite"))) == []


def test_what_the_npu_would_refuse_is_said_of_a_part_that_runs_here(
    cached: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.compile(cached / "graphs", None, stand_in.Options(), tmp_path / "one", quantized=quantized)
    assert [part["notes"] for part in parts_of(tmp_path / "one").values()] == [[], [], []]
    monkeypatch.setitem(lint.REFUSED, "SOFTMAX", ("MDLA 5.3 has no SOFTMAX", "take it on the CPU"))  # type: ignore[arg-type]
    stand_in.compile(cached / "graphs", None, stand_in.Options(), tmp_path / "other", quantized=quantized)
    found = {name: part["notes"] for name, part in parts_of(tmp_path / "other").items()}
    assert found["cross"] == []
    assert found["decoder"] == [
        "the NPU would refuse it: SOFTMAX (MDLA 5.3 has no SOFTMAX); see `nightjar lint --target mtk`"
    ]


def test_the_lint_without_the_stand_in_reads_the_onnx_graph(
    random_checkpoint: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.whisper.export import export

    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path / "none"))
    export(random_checkpoint, Recipe(decoder="static"), tmp_path / "plain", clamp=True)
    refused = {finding.op for finding in lint.lint(tmp_path / "plain") if finding.level == "refuse"}
    assert refused == {"Gather", "input"}
    assert lint.lint(cached / "graphs") == []


def test_places_are_said_in_the_models_words() -> None:
    assert place_of("/blocks.3/attn/query/MatMul") == "block 3, attention"
    name = "models.whisper.surgery.Encoder/models.whisper.surgery.EncoderBlock_3/torch.nn.modules.LayerNorm_attn_ln;2"
    assert place_of(name) == "block 3, norm before attention"
    assert place_of("/Gather") == "the graph itself"


def test_static_is_built_on_request(random_checkpoint: Path, tmp_path: Path) -> None:
    made = prepared(random_checkpoint, mtk.recipe("whisper").model_copy(update={"decoder": "static"}), tmp_path)
    options, ranges = stand_in.Options(precision="int8", samples=2), tmp_path / "ranges"
    stand_in.quantization(made / "graphs", made / "calibration", options, ranges)
    for part in ("encoder", "decoder"):
        assert list(lint.of_tflite(part, read(ranges / f"{part}.tflite"))) == []
    stand_in.compile(made / "graphs", None, options, tmp_path / "out", quantized=ranges)
    assert 0.5 < parts_of(tmp_path / "out")["decoder"]["int8_mac_share"] < 1, "attention with a constant mask is float"
    assert CalibrationSet.open(made / "calibration").count("decoder")


def test_a_port_reaches_a_verdict_that_says_stand_in_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    command = ["port", "--model", "whisper-nano", "--target", "mtk", "--precision", "fp", "--limit", "4"]
    with pytest.raises(Missing):
        toolchain("mtk")
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "nightjar toolchain install mtk --sdk FOLDER" in said
    assert "--board stand-in" in said
    assert "nightjar toolchain install mtk.stand_in" in said
    assert main([*command, "--board", "stand-in", "--json", str(tmp_path / "out.json")]) in (0, 1)
    results = json.loads((tmp_path / "out.json").read_text())
    assert (results["tier"], results["rtf"], results["delta_wer"]) == ("stand-in", None, 0)
    shown = capsys.readouterr().out
    assert "binary (stand-in)" in shown
    assert "tier stand-in" in shown
    page = ROOT.joinpath(results["report"]) if not Path(results["report"]).is_absolute() else Path(results["report"])
    text = page.read_text() if page.exists() else (tmp_path / results["report"]).read_text()
    assert "stand-in" in text
    assert not list((tmp_path / "store").rglob("*.dla"))
