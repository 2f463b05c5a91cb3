"""The path that many come with: rknn_model_zoo's window of 12 tokens, the last positional rows, all of it int8."""

import typing
from pathlib import Path

import numpy as np
import pytest

from models.whisper import decode
from models.whisper.calibrate import CalibrationOptions, calibrate
from models.whisper.export import export
from nightjar.errors import Missing
from nightjar.sessions.run import run_session
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, load_speech
from targets.onnx.runner import open_runner
from tests.conformance import rules
from tests.conformance.conftest import board_for
from tests.conformance.subjects import Subject, read, subject, subjects
from tests.conftest import SPEECH, need, real_weights

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")

NANO = Path(__file__).resolve().parents[2] / "data" / "whisper-nano"
STEPS = 4  # of a decode, teacher-forced


def check(each: Subject, checkpoint: Path, clips: list[Clip], folder: Path) -> float:
    """Export, calibrate on all clips but the last, build int8, decode the last; return the share of equal tokens."""
    try:
        board = board_for(each.name)
    except Missing as error:
        need(each.name, False, str(error))
        raise
    asked = {"window_s": 20.0, "decoder": "window", "positional": "last"}
    graphs, hidden = folder / "graphs", folder / "hidden"
    export(checkpoint, each.module.recipe("whisper").model_copy(update=asked), graphs, clamp=True)
    model = read(graphs, "model.json")
    assert (model["recipe"]["decoder"], model["recipe"]["positional"]) == ("window", "last")
    runner = open_runner(graphs, model["parts"])
    tables = {path.stem: np.load(path) for path in graphs.glob("*_embedding.npy")}
    waves = {clip.id: load_audio(clip.audio) for clip in clips}
    encoded = {
        name: decode.encode(runner, decode.features(wave.astype(np.float32) / 32768, model), model)
        for name, wave in waves.items()
    }
    hidden.mkdir()
    for clip in clips:
        np.save(hidden / f"{clip.id}.hidden.npy", encoded[clip.id]["hidden"][0].astype(np.float16))
    few = CalibrationOptions(samples=4, decoder_clips=2)
    calibrate(graphs, hidden, clips[:-1], few, runner, folder / "calibration")
    samples = {"samples": 4} if "samples" in each.module.Options.model_fields else {}
    options = each.module.Options(precision="int8", **samples)
    each.module.compile(graphs, folder / "calibration", options, folder / "int8")
    rules.binary(each, graphs, folder / "int8")
    described = read(folder / "int8", "binary.json")["parts"]
    for part in set(getattr(options, "npu", described)) & described.keys():
        assert described[part]["int8_mac_share"] > 0.3, f"{part} came out with hardly a product in int8"
    heard = clips[-1].id
    wanted = decode.decode(runner, encoded[heard], model, "en", tables)["tokens"][:STEPS]
    (line,) = run_session(
        *(board.connect(), folder / "int8", [], folder / "work"),
        decode=True,
        waves={heard: waves[heard]},
        forced={heard: wanted},
    )
    matching, steps = line["agree"]
    assert steps == len(wanted) + 1
    return float(matching / steps)


def has_int8(name: str) -> bool:
    return "int8" in typing.get_args(subject(name).module.Options.model_fields["precision"].annotation)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*filter(has_int8, subjects())])
def test_whisper_nano(name: str, tmp_path: Path) -> None:
    """It builds and runs; this model was not taught a prompt that is repeated, and says nothing."""
    clips = load_speech(NANO / "calibration.jsonl")[:3]
    check(subject(name), NANO / "whisper-nano.pt", clips, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "rknn"])
def test_tiny_en(name: str, tmp_path: Path) -> None:
    """It builds and runs; what plain int8 costs on these weights docs/accuracy.md has."""
    need("shared", SPEECH.is_dir(), "real speech: NIGHTJAR_DATA")
    clips = [clip for clip in load_speech(SPEECH / "calibration.jsonl") if clip.duration_s < 8][:3]
    agreed = check(subject(name), real_weights("tiny.en"), clips, tmp_path)
    assert agreed >= 0.6 or name == "rknn", "onnx keeps in float what narrows"
