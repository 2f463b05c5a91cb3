"""Bad input ends in one clear line and exit code 2; nothing runs and nothing is half written."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import soundfile

from nightjar.cli.main import main
from tests.flows.conftest import ROOT, write_speech

NANO = ROOT / "data" / "whisper-nano" / "whisper-nano.pt"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.fixture
def speech(tmp_path: Path) -> list[str]:
    """Flags for two good lists of different speakers."""
    calibration = write_speech(tmp_path / "calibration", {"c1": "red", "c2": "blue"}, speaker="ada")
    test = write_speech(tmp_path / "test", {"t1": "stop", "t2": "start"}, speaker="bob")
    return ["--calibration-set", str(calibration), "--test-set", str(test)]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run the command and return its one line on stderr."""
    assert main(["port", *arguments]) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("nightjar: ")
    assert "\n" not in error
    assert "Traceback" not in error
    return error


def test_unknown_model_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "whisper-nano" in refused(["--model", "whisper-enormous"], capsys)


def test_unknown_target_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["--target", "tpu"], capsys)
    assert "'tpu'" in line
    assert "onnx" in line


@pytest.mark.parametrize("target", ["mtk", "hailo"])
@pytest.mark.parametrize("board", [[], ["--board", "stand-in"]])
def test_a_family_that_a_target_has_no_recipe_for(
    target: str, board: list[str], own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["--model", "zipformer-nano", "--target", target, *board], capsys)
    assert f"target {target} has a recipe for whisper only; " in line
    assert "--target onnx or rknn" in line
    assert main(["lint", "--model", "zipformer-nano", "--target", target]) == 2
    assert not own_store.exists() or not list(own_store.glob("export/*"))


def test_unknown_board_is_missing_rather_than_bad_input(capsys: pytest.CaptureFixture[str], speech: list[str]) -> None:
    assert "local" in refused(["--board", "moon", *speech], capsys, code=3)


def test_missing_checkpoint(capsys: pytest.CaptureFixture[str], speech: list[str]) -> None:
    assert "no-such.pt" in refused(["--checkpoint", "no-such.pt", *speech], capsys)


def test_corrupt_checkpoint(
    capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path, own_store: Path
) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(NANO.read_bytes()[:100_000])
    assert "cut.pt" in refused(["--checkpoint", str(path), *speech], capsys)
    assert not (own_store / "export").exists()


class Bomb:
    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.crater),)


def test_a_pickle_bomb_does_not_run(capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path) -> None:
    crater, path = tmp_path / "crater", tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps(Bomb(crater)))
    assert "bomb.pt" in refused(["--checkpoint", str(path), *speech], capsys)
    assert not crater.exists()


def test_empty_manifest(capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path) -> None:
    (tmp_path / "test" / "speech.jsonl").write_text("")
    assert "speech.jsonl" in refused(speech, capsys)


def test_missing_text_names_file_and_line(
    capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path
) -> None:
    manifest = tmp_path / "test" / "speech.jsonl"
    first, second = (json.loads(line) for line in manifest.read_text().splitlines())
    del second["text"]
    manifest.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    assert "speech.jsonl:2" in refused(speech, capsys)


def test_truncated_audio(capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path) -> None:
    path = tmp_path / "test" / "t1.wav"
    path.write_bytes(path.read_bytes()[:9000])
    assert "t1.wav" in refused(speech, capsys)


def test_zero_length_audio(capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "test" / "t2.wav", [], 16000)
    assert "t2.wav" in refused(speech, capsys)


def test_overlapping_speakers_are_named(capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path) -> None:
    write_speech(tmp_path / "test", {"t1": "stop"}, speaker="ada")
    assert "ada" in refused(speech, capsys)


def test_the_same_audio_under_another_name_overlaps(
    capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path
) -> None:
    shutil.copyfile(tmp_path / "calibration" / "c1.wav", tmp_path / "test" / "t1.wav")
    assert "c1" in refused(speech, capsys)


def test_a_manifest_that_climbs_out_of_its_folder(
    capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path
) -> None:
    manifest = tmp_path / "test" / "speech.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "../calibration/c1.wav", "text": "red", "speaker": "eve"}) + "\n")
    assert "speech.jsonl:1" in refused(speech, capsys)


def test_a_window_beyond_the_models_context(capsys: pytest.CaptureFixture[str], speech: list[str]) -> None:
    line = refused(["--window", "30", *speech], capsys)
    assert "30 s" in line
    assert "10 s" in line


def test_a_clip_longer_than_the_window_can_be_refused(
    capsys: pytest.CaptureFixture[str], speech: list[str], tmp_path: Path
) -> None:
    write_speech(tmp_path / "test", {"t1": "stop"}, speaker="bob", seconds=6.0)
    assert "t1" in refused(["--window", "5", "--long", "refuse", "--precision", "fp", *speech], capsys)


def test_a_wrong_choice_ends_with_usage_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["port", "--decoder", "diagonal"])
    assert stopped.value.code == 2
    assert "invalid choice: 'diagonal'" in capsys.readouterr().err


def test_a_number_out_of_range_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--calibration-samples" in refused(["--calibration-samples", "0"], capsys)


def test_a_model_without_speech_of_its_own_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--calibration-set" in refused(["--model", "mine", "--checkpoint", str(NANO)], capsys)
