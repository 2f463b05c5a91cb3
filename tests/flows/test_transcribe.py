"""Text from a port: what its evaluation hears, printed per file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import whisper

from models.whisper.checkpoint import load_checkpoint, stock
from nightjar.cli.main import main
from nightjar.speech.audio import load_audio
from tests.conftest import SHARED, need, real_weights
from tests.flows.conftest import write_speech


@pytest.fixture(scope="module", autouse=True)
def store(shared_store: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTJAR_STORE", str(shared_store))
        yield shared_store


@pytest.fixture(scope="module")
def model(random_checkpoint: Path) -> list[str]:
    return ["--model", "random", "--checkpoint", str(random_checkpoint)]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("said"), {"said-0": "stop", "said-1": "start"}, speaker="bob")


def test_text_is_that_of_the_evaluation(
    store: Path,
    model: list[str],
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIGHTJAR_REPORTS", str(tmp_path / "reports"))
    calibration = write_speech(tmp_path / "calibration", {"c0": "red"})
    flags = ["--calibration-set", str(calibration), "--test-set", str(speech), "--precision", "fp"]
    assert main(["port", *flags, *model]) in (0, 1)
    heard = {
        line["id"]: line
        for path in store.glob("evaluate/*/hypotheses.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
        if line["id"].startswith("said-")
    }
    capsys.readouterr()
    files = [speech.parent / f"said-{number}.wav" for number in (1, 0)]
    assert main(["transcribe", *map(str, files), *model, "--json", str(tmp_path / "t.json")]) == 0
    first, *said = capsys.readouterr().out.splitlines()
    assert first == "transcribe random → onnx, fp, tier host"
    results = json.loads((tmp_path / "t.json").read_text())
    assert (results["tier"], results["precision"], results["window_s"]) == ("host", "fp", 10)
    assert [entry["file"] for entry in results["files"]] == [file.as_posix() for file in files]
    for entry, name, line in zip(results["files"], ("said-1", "said-0"), said[-2:], strict=True):
        assert entry["text"] == heard[name]["text"]
        assert entry["tokens"] == heard[name]["tokens"]
        assert line == f"{entry['file']}: {' '.join(entry['text'].split()) or '(empty)'}"


def test_a_second_time_everything_is_cached(
    model: list[str], speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["transcribe", str(speech), *model, "--json", str(tmp_path / "t.json")]) == 0
    results = json.loads((tmp_path / "t.json").read_text())
    assert all(stage["cached"] for stage in results["stages"])
    assert [entry["file"].rpartition("#")[2] for entry in results["files"]] == ["said-0", "said-1"]


def test_nothing_heard_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nightjar.cli.console import Screen, show_transcripts

    show_transcripts(
        Screen(), {"format": None, "files": [{"file": "a.wav", "text": " "}, {"file": "b.wav", "text": "[bold] b"}]}
    )
    assert capsys.readouterr().out == "a.wav: (empty)\nb.wav: [bold] b\n"


def test_too_long_is_cut_or_refused(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_speech(tmp_path, {"long": "stop"}, seconds=11.0)
    command = ["transcribe", str(tmp_path / "long.wav"), *model]
    assert main(command) == 0
    assert "long.wav: " in capsys.readouterr().out
    assert main([*command, "--long", "refuse"]) == 2
    error = capsys.readouterr().err.strip()
    assert "long" in error
    assert "10 s window" in error
    assert "\n" not in error


def test_a_missing_file_is_bad_input(
    model: list[str], speech: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transcribe", str(speech), "no-such.wav", *model]) == 2
    captured = capsys.readouterr()
    assert "no file no-such.wav" in captured.err
    assert "export" not in captured.out  # found out before anything ran


def test_int8_needs_calibration_speech(model: list[str], speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(speech), *model, "--precision", "int8"]) == 2
    assert "--calibration-set" in capsys.readouterr().err


def test_formats_print_only_what_belongs_into_such_a_file(
    model: list[str], speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = speech.parent / "said-0.wav"

    def printed(*flags: str) -> str:
        assert main(["transcribe", str(file), *model, *flags]) == 0
        return capsys.readouterr().out

    (entry,) = json.loads(printed("--format", "json", "--timestamps"))
    assert entry["segments"], "random weights write something"
    times = [time for each in entry["segments"] for time in (each["start_s"], each["end_s"])]
    assert times == sorted(times)
    assert times[-1] <= entry["audio_s"] + 0.005
    blocks = printed("--format", "srt").strip().split("\n\n")
    assert len(blocks) == len(entry["segments"])
    number, clock, text = blocks[0].split("\n", 2)
    assert number == "1"
    assert re.fullmatch(r"00:00:\d\d,\d{3} --> 00:00:\d\d,\d{3}", clock)
    assert text.strip() == entry["segments"][0]["text"]
    assert printed("--format", "vtt").startswith("WEBVTT\n\n00:00:0")
    assert printed("--format", "txt", "--timestamps").startswith("[00:00:0")
    assert "-->" not in printed("--format", "txt")


def test_timestamps_need_a_decoder_that_has_them(
    model: list[str], speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(speech.parent / "said-0.wav")
    assert main(["transcribe", file, *model, "--timestamps", "--decoder", "window"]) == 2
    assert "loop has no timestamps: remove --decoder window" in capsys.readouterr().err
    assert main(["transcribe", file, "--model", "zipformer-nano", "--timestamps"]) == 2
    assert "it has no tokens for them: remove --timestamps" in capsys.readouterr().err


@pytest.mark.slow
def test_segments_of_real_weights_are_openai_whispers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = SHARED / "data" / "clips" / "jfk.flac"
    need("shared", audio.is_file(), f"no {audio}")
    checkpoint = real_weights("tiny.en")
    wave = torch.from_numpy(load_audio(audio)).float() / 32768
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(wave))
    expected = whisper.decode(
        stock(load_checkpoint(checkpoint)), mel, whisper.DecodingOptions(language="en", fp16=False)
    )
    flags = ["--model", "tiny.en", "--checkpoint", str(checkpoint), "--format", "json", "--timestamps"]
    assert main(["transcribe", str(audio), *flags]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["tokens"] == expected.tokens
    assert " ".join(each["text"] for each in entry["segments"]) == expected.text
    assert entry["segments"][0]["start_s"] < 1
    assert 9 < entry["segments"][-1]["end_s"] <= 11
