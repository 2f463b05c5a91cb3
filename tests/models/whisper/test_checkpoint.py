"""Checkpoints: only plain weights that agree with their own dimensions come in."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import whisper

from models.whisper import NAMES, checkpoint
from models.whisper.checkpoint import find_checkpoint, load_checkpoint, stock
from nightjar.errors import BadCheckpoint, DownloadFailed, UnknownName

Content = dict[str, Any]


def refusal(path: Path) -> str:
    """Load a checkpoint that must be refused and return the one line that says why."""
    with pytest.raises(BadCheckpoint) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "--checkpoint" in message
    assert len(message) < 500
    return message


def test_weights_come_as_float32_with_their_own_dimensions(random_checkpoint: Path) -> None:
    loaded = load_checkpoint(random_checkpoint)
    assert loaded.dims["n_audio_ctx"] == 500
    assert loaded.dims["n_text_ctx"] == 64
    assert {tensor.dtype for tensor in loaded.state.values()} == {torch.float32}
    model = whisper.load_model(str(random_checkpoint), device="cpu")
    assert model.state_dict().keys() == loaded.state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state[name])


class Bomb:
    """Make a folder when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, form: str) -> None:
    path, crater = tmp_path / "bomb.pt", tmp_path / "crater"
    content = {"dims": Bomb(crater), "model_state_dict": {}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    refusal(path)
    assert not crater.exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "no checkpoint at" in refusal(tmp_path / "absent.pt")
    assert "no readable config.json" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, -1, -200, -100_000])
def test_a_truncated_file_is_refused(random_checkpoint: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(random_checkpoint.read_bytes()[:size])
    assert "cannot read" in refusal(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_text("not weights\n" * 100)
    refusal(path)
    torch.save([torch.zeros(3)], path)
    assert "list" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/readme.txt", "an archive, but not torch's")
    refusal(path)


def _dims(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["dims"].update(changes)


def _tensor(name: str, value: Any) -> Callable[[Content], None]:
    return lambda content: content["model_state_dict"].update({name: value})


BROKEN: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no dims": (lambda c: c.pop("dims"), "it has no dims"),
    "no state": (lambda c: c.pop("model_state_dict"), "it holds"),
    "Hugging Face's keys": (
        lambda c: c.update(model_state_dict={"model.encoder.conv1.weight": torch.zeros(1)}),
        "missing",
    ),
    "a dimension short": (lambda c: c["dims"].pop("n_mels"), "dims must be"),
    "a dimension of text": (_dims(n_mels="80"), "n_mels is '80'"),
    "a dimension below one": (_dims(n_audio_layer=0), "n_audio_layer is 0"),
    "an absurd dimension": (_dims(n_vocab=10**15), "n_vocab"),
    "layers without end": (_dims(n_text_layer=1 << 20), "layers"),
    "heads that do not divide": (_dims(n_text_head=3), "heads"),
    "states that differ": (_dims(n_text_state=64), "differ"),
    "a layer too many": (_dims(n_text_layer=3), "missing"),
    "a layer too few": (_dims(n_audio_layer=1), "unknown"),
    "another context": (_dims(n_audio_ctx=1500), "encoder.positional_embedding is (500, 32)"),
    "another vocabulary": (_dims(n_vocab=51865), "decoder.token_embedding.weight is (51864, 32)"),
    "a tensor of another shape": (_tensor("encoder.conv1.bias", torch.zeros(7)), "encoder.conv1.bias is (7,)"),
    "a tensor of integers": (_tensor("encoder.conv1.bias", torch.zeros(32, dtype=torch.int8)), "torch.int8"),
    "a tensor that is a number": (_tensor("encoder.conv1.bias", 3.0), "other than tensors"),
    "a value that is not finite": (_tensor("encoder.conv1.bias", torch.full((32,), torch.nan)), "not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contradictions_are_refused_by_name(random_checkpoint: Path, tmp_path: Path, case: str) -> None:
    change, says = BROKEN[case]
    content = torch.load(random_checkpoint, weights_only=True)
    change(content)
    path = tmp_path / "broken.pt"
    torch.save(content, path)
    assert says in refusal(path)


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(UnknownName, match=r"no model 'tinny'.*whisper-nano.*tiny\.en.*--checkpoint"):
        find_checkpoint("tinny")


def test_the_light_list_of_names_is_the_loaders() -> None:
    assert {*NAMES} == {*checkpoint.SHIPPED, *whisper._MODELS} or {*NAMES} == {*whisper._MODELS}


def test_openais_loader_fetches_into_its_own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def download(url: str, root: str, in_memory: bool) -> str:
        calls.append((url, root, in_memory))
        return f"{root}/small.en.pt"

    monkeypatch.setattr(whisper, "_download", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_checkpoint("small.en") == tmp_path / "whisper" / "small.en.pt"
    assert calls == [(whisper._MODELS["small.en"], str(tmp_path / "whisper"), False)]


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("the SHA256 does not match"), OSError()])
def test_a_failed_download_says_what_to_pass_instead(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*_: object) -> None:
        raise error

    monkeypatch.setattr(whisper, "_download", download)
    with pytest.raises(DownloadFailed, match=r"cannot download tiny .*--checkpoint") as caught:
        find_checkpoint("tiny")
    assert "\n" not in str(caught.value)


def test_the_shipped_model_is_found_or_missed_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(checkpoint.SHIPPED, "whisper-nano", tmp_path / "nano.pt")
    with pytest.raises(BadCheckpoint, match="missing"):
        find_checkpoint("whisper-nano")
    (tmp_path / "nano.pt").touch()
    assert find_checkpoint("whisper-nano") == tmp_path / "nano.pt"


def test_stock_has_the_positional_rows_of_the_checkpoint(random_checkpoint: Path) -> None:
    loaded = load_checkpoint(random_checkpoint)
    whole = loaded.state["encoder.positional_embedding"]
    assert torch.equal(stock(loaded).encoder.positional_embedding, whole)
