"""A Hugging Face Whisper folder gives the logits of its openai-whisper twin, and of transformers itself."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.whisper.checkpoint import load_checkpoint, stock
from nightjar.errors import BadCheckpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import WhisperConfig, WhisperForConditionalGeneration


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[WhisperForConditionalGeneration, Path]:
    """A seeded random transformers Whisper, and the folder it saved itself to."""
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=51864,
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=500,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder, max_shard_size="3MB")
    return model, folder


def test_logits_are_those_of_transformers(twin: tuple[WhisperForConditionalGeneration, Path]) -> None:
    model, folder = twin
    ours = stock(load_checkpoint(folder))
    mel = torch.randn(1, 80, 1000, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 50000, (1, 12), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(input_features=mel, decoder_input_ids=tokens).logits
        obtained = ours(mel, tokens)
    assert expected.std() > 0.01
    torch.testing.assert_close(obtained, expected, atol=1e-5, rtol=0)


def test_dimensions_come_from_the_config_and_are_checked(
    twin: tuple[WhisperForConditionalGeneration, Path], tmp_path: Path
) -> None:
    _, folder = twin
    assert load_checkpoint(folder).dims["n_text_layer"] == 3
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_model": 64}))
    with pytest.raises(BadCheckpoint, match="its dims give"):
        load_checkpoint(tmp_path)


def test_a_missing_shard_is_named(twin: tuple[WhisperForConditionalGeneration, Path], tmp_path: Path) -> None:
    _, folder = twin
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    for path in folder.iterdir():
        if path != shards[0]:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadCheckpoint, match=shards[0].name):
        load_checkpoint(tmp_path)


def test_a_truncated_shard_is_refused(twin: tuple[WhisperForConditionalGeneration, Path], tmp_path: Path) -> None:
    _, folder = twin
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match=shard.name):
        load_checkpoint(tmp_path)


def test_an_untied_projection_is_refused(twin: tuple[WhisperForConditionalGeneration, Path], tmp_path: Path) -> None:
    _, folder = twin
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"] * 2
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(BadCheckpoint, match="proj_out"):
        load_checkpoint(tmp_path)


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    with pytest.raises(BadCheckpoint, match="wav2vec2"):
        load_checkpoint(tmp_path)
