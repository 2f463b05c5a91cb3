"""Languages: detected as openai-whisper detects them, by every protocol, lane by lane."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from models.whisper import decode
from models.whisper.checkpoint import load_checkpoint
from models.whisper.export import export
from nightjar.plugins.recipe import Recipe
from targets.onnx.runner import open_runner
from tests.models.whisper.reference import stock_in_window

PROTOCOLS = ("window", "static", "cached")


@pytest.fixture(scope="module")
def multilingual(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint with one more token, so that it is multilingual."""
    content = torch.load(random_checkpoint, weights_only=True)
    table = content["model_state_dict"]["decoder.token_embedding.weight"]
    content["model_state_dict"]["decoder.token_embedding.weight"] = torch.cat([table, table[:1]])
    content["dims"]["n_vocab"] += 1
    path = tmp_path_factory.mktemp("multilingual") / "random.pt"
    torch.save(content, path)
    return path


def hidden_states() -> list[np.ndarray]:
    """Encoder outputs that make a random decoder change its mind."""
    noise = np.random.default_rng(11)
    return [
        noise.standard_normal((1, 250, 32), np.float32) + 4 * noise.standard_normal(32, np.float32) for _ in range(4)
    ]


def opened(path: Path, protocol: str, out: Path) -> tuple[Any, dict[str, Any]]:
    export(path, Recipe(decoder=protocol, window_s=5, decoder_length=32, host_embedding=False), out)
    model = json.loads((out / "model.json").read_text())
    return open_runner(out, model["parts"]), model


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_detected_language_is_openai_whispers(multilingual: Path, tmp_path: Path, protocol: str) -> None:
    runner, model = opened(multilingual, protocol, tmp_path)
    original = stock_in_window(load_checkpoint(multilingual), 250)
    detected = []
    for hidden in hidden_states():
        encoded = {"hidden": hidden}
        token, _ = whisper.detect_language(original, torch.from_numpy(hidden))
        found = decode.decode(runner, encoded, model, "auto")
        assert model["tokens"]["languages"][found["language"]] == int(token)
        named = decode.decode(runner, encoded, model, found["language"])
        assert found == named, "detection costs no step and changes no token"
        detected.append(found["language"])
    assert len(set(detected)) > 1, "the clips must differ, or the test shows nothing"


def test_an_english_only_model_detects_english(random_checkpoint: Path, tmp_path: Path) -> None:
    runner, model = opened(random_checkpoint, "cached", tmp_path)
    encoded = {"hidden": hidden_states()[0]}
    found = decode.decode(runner, encoded, model, "auto")
    assert found == decode.decode(runner, encoded, model, "en")
    assert found["language"] == "en"
    with pytest.raises(ValueError, match="English-only model does not translate"):
        decode.prompt_tokens({**model, "recipe": {"task": "translate"}})


def test_translation_has_its_own_prompt(multilingual: Path, tmp_path: Path) -> None:
    export(multilingual, Recipe(decoder="cached", window_s=5, decoder_length=32, task="translate"), tmp_path)
    model = json.loads((tmp_path / "model.json").read_text())
    assert decode.prompt_tokens(model, "de") == [50258, 50261, 50358, 50363]
    assert decode.prompt_tokens({**model, "recipe": {}}, "de") == [50258, 50261, 50359, 50363]
