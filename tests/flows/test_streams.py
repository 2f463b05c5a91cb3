"""A streaming transducer through the same graph as Whisper, as a user sees it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nightjar.cli.main import main
from tests.flows.conftest import ROOT, Cli, shipped_speech
from tests.models.zipformer.second_generation import write_checkpoint

pytestmark = pytest.mark.slow

NANO = ("--model", "zipformer-nano")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shipped_speech(tmp_path_factory.mktemp("speech"), calibration=12, evaluation=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams") / "artifacts"


def test_a_port_says_what_a_stream_is_asked(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    done = cli("port", *NANO, *few, "--drift", "20", "--json", tmp_path / "r.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["stock"] == "sherpa-onnx"
    assert results["wer_float"] == results["wer_stock"]  # token for token
    assert results["int8_mac_share"]["encoder"] > 0.3
    stream = results["stream"]
    assert [each["name"] for each in stream["by_chunk"]["binary"]][:2] == ["first", "second"]
    words = {name: sum(_words(each) for each in rows) for name, rows in stream["by_chunk"].items() if rows}
    assert words["float"] == words["binary"] == results["words"]
    times = stream["chunk_times"]["binary"]
    assert 0 < times["p50_ms"] <= times["p95_ms"]
    assert times["lasts_ms"] == 640
    drift = stream["drift"]
    assert len(drift["courses"]) == 1 + 35
    assert drift["count"] * 0.64 == pytest.approx(20, abs=1.5)
    assert {gate["name"] for gate in results["gates"]} >= {"drift", "delta_wer"}
    assert "a chunk of 640 ms takes" in done.stdout
    page = (ROOT / results["report"]).read_text()
    for said in ("errors by chunk", "time per chunk", "drift over 20 s", "new_cached_avg_", "sherpa-onnx itself"):
        assert said in page
    assert "openai-whisper" not in page


def _words(each: dict[str, Any]) -> int:
    return sum(int(each["counts"][kind]) for kind in ("hits", "substitutions", "deletions"))


def test_a_second_run_executes_nothing(cli: Cli, few: list[str], store: Path) -> None:
    cli("port", *NANO, *few, "--drift", "20", store=store)
    again = cli("port", *NANO, *few, "--drift", "20", store=store)
    assert "stages cached, none was executed" in again.stdout


def test_other_calibration_is_another_set_and_nothing_else(cli: Cli, few: list[str], store: Path) -> None:
    cli("port", *NANO, *few, "--drift", "20", store=store)
    asked = ("--drift", "20", "--calibration-states", "zero")
    plan = cli("port", *NANO, *few, *asked, "--plan", store=store).stdout
    would_run = [line.split()[0] for line in plan.splitlines() if "would run" in line and "stages" not in line]
    assert would_run[0] == "calibrate"
    assert not {"export", "harvest", "stock"} & set(would_run)


def test_a_folder_of_the_second_generation_is_a_checkpoint(cli: Cli, few: list[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "second")
    asked = ("--model", "mine", "--checkpoint", folder, "--precision", "fp", "--drift", "0")
    done = cli("port", *asked, *few, "--json", tmp_path / "r.json")
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["delta_wer"] == 0
    assert results["wer_float"] == results["wer_stock"]
    assert results["stream"]["drift"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["port", *NANO, "--window", "5"], "a stream has no window"),
        (["port", *NANO, "--decoder", "cached"], "remove --decoder"),
        (["port", *NANO, "--host-embedding"], "remove --host-embedding"),
        (["port", *NANO, "--target", "torchscript", "--precision", "fp"], "takes torchscript"),
        (["port", "--calibration-states", "zero"], "remove --calibration-states"),
        (["port", "--drift", "60"], "remove --drift"),
        (["calibrate", "import-dumps", *NANO, "--bin-dir", "data"], "needs no dumps"),
        (["port", "--model", "x", "--checkpoint", "data/whisper-nano/clips"], "encoder, decoder, joiner .onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


def test_a_stream_s_binary_is_no_dataset_s(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    cli("port", *NANO, *few, "--drift", "20", store=store)
    binary = next(path.parent for path in (store / "build").glob("*/binary.json"))
    done = cli("harvest", "--binary", binary, "--speech", few[1], "--out", tmp_path / "dataset")
    assert done.returncode == 2
    assert "is a streaming model" in done.stderr
    assert not (tmp_path / "dataset").exists()


def test_speech_is_transcribed(cli: Cli, few: list[str], store: Path) -> None:
    clip = next((ROOT / "data" / "whisper-nano" / "clips" / "evaluation").glob("*.flac"))
    done = cli("transcribe", *NANO, clip, store=store)
    assert done.returncode == 0, done.stderr
    assert clip.stem in done.stdout


def spoilt(folder: Path) -> Path:
    """Copy the shipped model; its rows are NaN once a hundred frames have been heard."""
    folder.mkdir()
    for name in ("decoder.onnx", "joiner.onnx", "tokens.txt"):
        shutil.copyfile(ROOT / "data" / "zipformer-nano" / name, folder / name)
    model = onnx.load(ROOT / "data" / "zipformer-nano" / "encoder.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["rows" if name == "encoder_out" else name for name in node.output]
    constants = {"hundred": np.array(100, np.float32), "nothing": np.array(0, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Cast", ["cached_len_0"], ["heard"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["heard"], ["most"], keepdims=0),
            helper.make_node("Sub", ["hundred", "most"], ["left"]),
            helper.make_node("Sqrt", ["left"], ["spoilt"]),
            helper.make_node("Mul", ["spoilt", "nothing"], ["added"]),
            helper.make_node("Add", ["rows", "added"], ["encoder_out"]),
        ]
    )
    onnx.save(model, folder / "encoder.onnx")
    return folder


def test_what_no_stream_can_go_on_from_is_said_with_chunk_and_tensor(cli: Cli, few: list[str], tmp_path: Path) -> None:
    asked = ("--model", "mine", "--checkpoint", spoilt(tmp_path / "spoilt"))
    for precision in ("int8", "fp"):
        done = cli("port", *asked, *few, "--precision", precision)
        assert done.returncode in (2, 4), done.stdout + done.stderr
        assert re.search(r"chunk 4: encoder_out holds NaN", done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
