"""Clips longer than the window: cut, decoded in pieces and joined, or skipped, or refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.decoding import DecodingOptions
from whisper.decoding import decode as whisper_decode

from models.whisper.export import export
from models.whisper.stock import load_stock
from models.whisper.tokens import text
from nightjar.boards.board import LocalBoard
from nightjar.device.pause_splitter import cut
from nightjar.errors import BadManifest, BadOptions
from nightjar.files import digest_file
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import session_of
from nightjar.sessions.run import run_session
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech, speech_digest
from nightjar.store.artifact import Artifact, Source, Store
from targets.onnx import compile
from targets.onnx.options import Options
from tasks.evaluate import evaluate
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.stage import Run, running
from tasks.stock import stock

WINDOW_S = 5.0
LENGTHS_S = {"long": 17.0, "long.000": 2.0, "short": 3.0}  # the second is called what the first one's piece would be


@pytest.fixture(scope="module")
def binary(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs, out = tmp_path_factory.mktemp("graphs"), tmp_path_factory.mktemp("binary")
    export(random_checkpoint, Recipe(window_s=WINDOW_S), graphs)
    compile(graphs, None, Options(precision="fp"), out)
    return out


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(5)
    for name, seconds in LENGTHS_S.items():
        wave = rng.standard_normal(round(seconds * 16000)) * rng.uniform(300, 3000)
        for pause_s in (3.9, 7.7, 12.1):
            wave[round(pause_s * 16000) :][:6400] /= 100
        soundfile.write(folder / f"{name}.wav", wave.clip(-32768, 32767).astype(np.int16), 16000)
        (folder / f"{name}.txt").write_text("what is said")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with running(Run(Store(tmp_path / "artifacts"))) as run:
        yield run.store


def source(speech: Path) -> Source:
    return Source(path=speech, sha256=speech_digest(load_speech(speech)))


def run_evaluate(
    store: Store, binary: Path, speech: Path, reference: Artifact | None = None, **options: Any
) -> Artifact:
    target = plugin("targets", "onnx")
    board = board_of(target, "local")
    made: Artifact = evaluate(
        binary=binary,
        speech=source(speech),
        session=session_of(plugin("models", "whisper", "decode"), target, board),
        words=plugin("models", "whisper", "tokens"),
        board=board,
        reference=reference,
        options=EvaluateOptions(**options, probes=True),
    )
    return made


def run_stock(store: Store, checkpoint: Path, speech: Path, **options: Any) -> Artifact:
    made: Artifact = stock(
        checkpoint=Source(path=checkpoint, sha256=digest_file(checkpoint)),
        speech=source(speech),
        model=plugin("models", "whisper", "stock"),
        options=EvaluateOptions(**options, probes=True),
    )
    return made


def clip_lines(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in read_hypotheses(folder) if not line["probe"]}


def test_a_long_clip_is_one_line_of_its_pieces_joined(store: Store, binary: Path, speech: Path, tmp_path: Path) -> None:
    made = run_evaluate(store, binary, speech, long="chunk")
    assert (made.meta["clips"], made.meta["skipped"]) == ("3", "0")
    lines = clip_lines(store.path(made))
    assert list(lines) == list(LENGTHS_S)
    assert {name: line["audio_s"] for name, line in lines.items()} == LENGTHS_S

    wave = load_audio(speech / "long.wav")
    ranges = cut(wave, WINDOW_S)
    assert len(ranges) >= 4
    waves = {f"piece{number}": wave[start:end] for number, (start, end) in enumerate(ranges)}
    pieces = run_session(LocalBoard(), binary, [], tmp_path / "job", decode=True, waves=waves)
    model = json.loads((binary / "model.json").read_text())
    long = lines["long"]
    assert long["tokens"] == [token for piece in pieces for token in piece["tokens"]]
    assert len({tuple(piece["tokens"]) for piece in pieces}) > 1
    assert long["text"] == " ".join(said for piece in pieces if (said := text(piece["tokens"], model)))
    assert long["steps"] == sum(piece["steps"] for piece in pieces)
    assert long["capped"] == any(piece["capped"] for piece in pieces)
    assert long["agree"] is None
    assert long["seconds"].keys() == pieces[0]["seconds"].keys()
    assert (long["reference"], long["probe"]) == ("what is said", False)


def test_agreement_is_measured_on_the_clips_that_fit(store: Store, binary: Path, speech: Path) -> None:
    first = run_evaluate(store, binary, speech, long="chunk")
    again = clip_lines(store.path(run_evaluate(store, binary, speech, reference=first, long="chunk", agree_clips=1)))
    assert (again["long"]["agree"], again["short"]["agree"]) == (None, None)
    matching, of = again["long.000"]["agree"]
    assert len(again["long.000"]["tokens"]) + 1 == of  # every token, and where the text ends
    assert matching >= of - 1  # noise does not end: the cap does


def test_the_clips_that_fit_and_the_probes_are_decoded_as_without_long_form(
    store: Store, binary: Path, speech: Path
) -> None:
    skipping, chunking = (
        {
            line["id"]: line["tokens"]
            for line in read_hypotheses(store.path(run_evaluate(store, binary, speech, long=long)))
        }
        for long in ("skip", "chunk")
    )
    assert chunking.keys() - skipping.keys() == {"long"}
    assert skipping == {name: tokens for name, tokens in chunking.items() if name != "long"}


def test_long_clips_are_skipped_by_default_and_counted(store: Store, binary: Path, speech: Path) -> None:
    made = run_evaluate(store, binary, speech)
    assert list(clip_lines(store.path(made))) == ["long.000", "short"]
    assert (made.meta["clips"], made.meta["skipped"]) == ("2", "1")
    assert json.loads((store.path(made) / "skipped.json").read_text()) == ["long"]


def test_long_clips_can_be_refused(store: Store, binary: Path, speech: Path) -> None:
    with pytest.raises(BadOptions, match=r"first long with 17\.0 s: pass --long skip or --long chunk"):
        run_evaluate(store, binary, speech, long="refuse")


def test_speech_of_long_clips_alone_names_the_option(store: Store, binary: Path, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    for name in ("long.wav", "long.txt"):
        (tmp_path / "speech" / name).write_bytes((speech / name).read_bytes())
    with pytest.raises(BadManifest, match="pass --long chunk"):
        run_evaluate(store, binary, tmp_path / "speech")
    assert list(clip_lines(store.path(run_evaluate(store, binary, tmp_path / "speech", long="chunk")))) == ["long"]


def test_stock_takes_openai_whispers_own_long_form_beyond_its_window(
    store: Store, random_checkpoint: Path, speech: Path
) -> None:
    skipping = clip_lines(store.path(run_stock(store, random_checkpoint, speech)))
    chunking = clip_lines(store.path(run_stock(store, random_checkpoint, speech, long="chunk")))
    assert list(chunking) == list(LENGTHS_S)
    assert chunking["long"]["audio_s"] == 17.0
    assert {name: line["tokens"] for name, line in skipping.items()} == {
        name: line["tokens"] for name, line in chunking.items() if name != "long"
    }


def test_stocks_long_form_steps_by_the_models_own_window(random_checkpoint: Path, speech: Path) -> None:
    module = sys.modules["whisper.transcribe"]
    before = module.N_FRAMES, module.N_SAMPLES
    original = load_stock(random_checkpoint)
    line = original.transcribe_long(speech / "long.wav", "en")
    assert before == (module.N_FRAMES, module.N_SAMPLES)

    wave = torch.from_numpy(load_audio(speech / "long.wav").astype(np.float32) / 32768.0)
    mel = log_mel_spectrogram(wave, padding=160_000)[:, :1700]
    options = DecodingOptions(language="en", without_timestamps=True, fp16=False)
    windows: list[Any] = [
        whisper_decode(original.model, pad_or_trim(part, 1000), options) for part in mel.split(1000, dim=1)
    ]
    assert line["tokens"] == [token for window in windows for token in window.tokens]
    assert line["capped"] == any(len(window.tokens) >= 32 for window in windows)
