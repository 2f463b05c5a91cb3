"""A folder is taken as sherpa-onnx and icefall ship it, and refused in one line where it is not one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from models.zipformer.checkpoint import load_checkpoint
from nightjar.errors import BadCheckpoint
from tests.models.zipformer.conftest import NANO
from tests.models.zipformer.second_generation import write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    copied = tmp_path / "model"
    copied.mkdir()
    for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"):
        shutil.copyfile(NANO / name, copied / name)
    return copied


def told(folder: Path, **metadata: str | None) -> None:
    """Change what the encoder says of itself."""
    model = onnx.load(folder / "encoder.onnx")
    known = {prop.key: prop.value for prop in model.metadata_props} | metadata
    del model.metadata_props[:]
    helper.set_model_props(model, {key: value for key, value in known.items() if value is not None})
    onnx.save(model, folder / "encoder.onnx")


def test_both_generations_are_read(folder: Path, tmp_path: Path) -> None:
    first, second = load_checkpoint(folder), load_checkpoint(write_checkpoint(tmp_path / "second"))
    assert first.metadata["model_type"] == "zipformer"
    assert second.metadata["model_type"] == "zipformer2"
    assert len(first.graphs["encoder"].graph.input) == 1 + 7 * 5
    assert len(second.graphs["encoder"].graph.input) == 1 + 6 * 3 + 2
    assert first.symbols[0] == "<blk>"


def test_a_quantized_copy_beside_the_float_graph_is_passed_over(folder: Path) -> None:
    shutil.copyfile(folder / "joiner.onnx", folder / "encoder-epoch-99-avg-1.int8.onnx")
    assert load_checkpoint(folder).metadata["model_type"] == "zipformer"


def _doubled(folder: Path) -> None:
    shutil.copyfile(folder / "encoder.onnx", folder / "encoder-epoch-9.onnx")


def _missing(folder: Path) -> None:
    (folder / "joiner.onnx").unlink()


def _only_int8(folder: Path) -> None:
    (folder / "encoder.onnx").rename(folder / "encoder.int8.onnx")


def _no_tokens(folder: Path) -> None:
    (folder / "tokens.txt").unlink()


def _tokens_with_a_gap(folder: Path) -> None:
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "tokens.txt").write_text("".join(lines[:5] + lines[6:]), encoding="utf-8")


def _tokens_without_numbers(folder: Path) -> None:
    (folder / "tokens.txt").write_text("<blk>\n▁a\n", encoding="utf-8")


def _no_graph(folder: Path) -> None:
    (folder / "decoder.onnx").write_bytes(b"not an onnx file" * 40)


def _cut_short(folder: Path) -> None:
    data = (folder / "encoder.onnx").read_bytes()
    (folder / "encoder.onnx").write_bytes(data[: len(data) // 2])


def _swapped(folder: Path) -> None:
    (folder / "encoder.onnx").rename(folder / "x")
    (folder / "decoder.onnx").rename(folder / "encoder.onnx")
    (folder / "x").rename(folder / "decoder.onnx")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_doubled, "several files of encoder: encoder-epoch-9.onnx, encoder.onnx"),
        (_missing, "no float joiner"),
        (_only_int8, "quantized already"),
        (_no_tokens, "no tokens.txt"),
        (_tokens_with_a_gap, "does not number the tokens 0, 1, 2, … without gaps"),
        (_tokens_without_numbers, "line 1"),
        (_no_graph, "is not an ONNX graph"),
        (_cut_short, "encoder.onnx"),
        (_swapped, "its encoder takes y"),
        (
            lambda folder: told(folder, model_type="conformer"),
            "model_type conformer, allowed are zipformer and zipformer2",
        ),
        (lambda folder: told(folder, T=None), "no number T"),
        (lambda folder: told(folder, T="77"), "its metadata has x (1, 77, 80)"),
        (lambda folder: told(folder, left_context_len="128,64"), "different lengths"),
        (lambda folder: told(folder, left_context_len="96,64,32,16,64"), "the state cached_key_0 is"),
        (lambda folder: told(folder, encoder_dims="many"), "no list encoder_dims"),
        (lambda folder: told(folder, feature="whisper"), "whisper features"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_streaming_zipformer_is_refused_in_one_line(
    spoil: Callable[[Path], None], said: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(BadCheckpoint) as refused:
        load_checkpoint(folder)
    text = str(refused.value)
    assert said in text
    assert "\n" not in text
    assert "encoder, decoder and joiner" in text or "tokens" in text  # what is allowed
