"""Languages from the command line: understood by name, refused before anything runs, detected clip by clip."""

import json
from pathlib import Path

import pytest
import torch

from models.whisper.checkpoint import load_checkpoint, stock
from nightjar.cli.main import main
from nightjar.speech.audio import load_audio
from tests.conftest import SHARED, need, real_weights
from tests.flows.conftest import Cli

CLIPS = SHARED / "data" / "clips"
# What openai-whisper prints with OpenAI's base and its default options.
TEXTS = {
    "jfk.flac": "And so my fellow Americans ask not what your country can do for you, ask what you can do for your "
    "country.",
    "test_en.wav": "Mr. Quilter is the apostle of the middle classes, and we are glad to welcome his gospel.",
    "test_zh.wav": "對我做了介紹我想說的是大家如果對我的研究感興趣",
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.mark.parametrize(
    ("language", "says"),
    [
        ("xx", "no language 'xx': pass --language auto, a code"),
        ("de", "no language 'de' in this model: have auto, en"),
        ("klingon-DE", "no language 'klingon-DE'"),
    ],
)
@pytest.mark.parametrize("plan", [(), ("--plan",)])
def test_a_language_is_refused_before_anything_runs(
    store: Path, language: str, says: str, plan: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["port", "--model", "whisper-nano", "--language", language, *plan]) == 2
    error = capsys.readouterr().err
    assert says in " ".join(error.split())
    assert "Traceback" not in error
    assert not list(store.glob("*/*/record.json"))


def test_what_a_family_lacks_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["port", "--model", "zipformer-nano", "--language", "auto"]) == 2
    assert "does not detect the language" in capsys.readouterr().err
    assert main(["port", "--model", "whisper-nano", "--task", "translate"]) == 2
    assert "English-only model does not translate" in capsys.readouterr().err


@pytest.mark.parametrize("language", ["English", "en-GB", "EN", "auto"])
def test_names_and_regions_of_english_are_english(store: Path, language: str) -> None:
    assert main(["port", "--model", "whisper-nano", "--language", language, "--plan"]) == 0


@pytest.mark.slow
def test_base_detects_languages_and_agrees_with_openai_whisper(cli: Cli, tmp_path: Path) -> None:
    need("shared", CLIPS.is_dir(), f"no {CLIPS}")
    folder = real_weights("base").with_suffix("")
    done = cli(
        *("compare", CLIPS, "--model", "base", "--checkpoint", folder, "--language", "auto"),
        *("--out", tmp_path / "compared"),
        store=tmp_path / "artifacts",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    assert summary["clips"] == summary["equal"] == 3
    for clip, language in (("jfk", "en"), ("test_en", "en"), ("test_zh", "zh")):
        by = json.loads((tmp_path / "compared" / f"{clip}.json").read_text())["by"]
        assert {name: result["language"] for name, result in by.items()} == dict.fromkeys(by, language)


@pytest.mark.slow
def test_base_from_ctranslate2_prints_openai_whispers_texts() -> None:
    need("shared", CLIPS.is_dir(), f"no {CLIPS}")
    model = stock(load_checkpoint(real_weights("base").with_suffix("")))
    for name, text in TEXTS.items():
        wave = torch.from_numpy(load_audio(CLIPS / name)).float() / 32768
        assert model.transcribe(wave, fp16=False)["text"].strip() == text, name
