"""Timestamps: sampled as openai-whisper samples them, and the segments that they mark."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from models.whisper import decode
from models.whisper.checkpoint import load_checkpoint, stock
from models.whisper.export import export
from models.whisper.timestamps import allow_timestamps, split_segments
from models.whisper.tokens import VOCABULARIES, segments
from nightjar.plugins.recipe import Recipe
from targets.onnx.runner import open_runner

BEGIN = 50363  # of an English-only model
TABLE = {"timestamp_begin": BEGIN}


@pytest.mark.parametrize("protocol", ["static", "cached"])
def test_tokens_are_those_of_whisper_decode(random_checkpoint: Path, tmp_path: Path, protocol: str) -> None:
    export(random_checkpoint, Recipe(decoder=protocol, window_s=10, decoder_length=64), tmp_path)
    model = {**json.loads((tmp_path / "model.json").read_text()), "timestamps": True}
    runner = open_runner(tmp_path, model["parts"])
    original = stock(load_checkpoint(random_checkpoint))
    noise = np.random.default_rng(5)
    ends = set()
    for _ in range(4):
        hidden = 4 * noise.standard_normal(32, np.float32) + noise.standard_normal((1, 500, 32), np.float32)
        # Their time step is that of 30 s over the encoder's rows, ours that of Whisper: 50 steps are a second.
        options = whisper.DecodingOptions(language="en", fp16=False, max_initial_timestamp=3.0)
        expected = whisper.decode(original, torch.from_numpy(hidden), options)[0].tokens
        found = decode.decode(runner, {"hidden": hidden}, model)["tokens"]
        assert found == expected
        assert BEGIN <= found[0] <= BEGIN + 50
        ends.add(tuple(found))
    assert len(ends) > 1, "the clips must differ, or the test shows nothing"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([BEGIN, 5, 6, BEGIN + 50], [(0.0, 1.0, [5, 6])]),
        ([BEGIN, 5, BEGIN + 50, BEGIN + 60, 6, BEGIN + 100], [(0.0, 1.0, [5]), (1.2, 2.0, [6])]),
        ([BEGIN + 10, 5, 6], [(0.2, 3.0, [5, 6])]),  # cut by a limit: to the end of the clip
        ([BEGIN, 5, BEGIN + 1500], [(0.0, 3.0, [5])]),  # beyond the clip
        ([5, 6], [(0.0, 3.0, [5, 6])]),
        ([BEGIN, BEGIN + 10], []),
        ([], []),
        ([BEGIN, 5, BEGIN + 1501, BEGIN + 50], [(0.0, 1.0, [5, BEGIN + 1501])]),  # an added token is text
    ],
)
def test_segments(tokens: list[int], expected: list[tuple[Any, ...]]) -> None:
    assert list(split_segments(tokens, TABLE, 3.0)) == expected


def test_segments_have_texts() -> None:
    model = {"tokens": {"languages": {}, "timestamp_begin": BEGIN}}
    tokens = VOCABULARIES[0].tokenizer.encode(" Good night.")
    assert segments([BEGIN, *tokens, BEGIN + 70], model, 2.0) == [{"start_s": 0.0, "end_s": 1.4, "text": "Good night."}]


def test_an_added_token_is_text() -> None:
    """It lies behind the timestamps, and neither begins a clip nor hides in their probability."""
    table = {"timestamp_begin": BEGIN, "no_timestamps": BEGIN - 1, "eot": 50256}
    logits = np.zeros(BEGIN + 1502, np.float32)
    logits[-1] = 20.0
    assert BEGIN <= int(allow_timestamps(logits, [], table).argmax()) <= BEGIN + 50
    assert int(allow_timestamps(logits, [BEGIN], table).argmax()) == BEGIN + 1501
    assert int(allow_timestamps(logits, [BEGIN, 5, BEGIN + 9], table).argmax()) != BEGIN + 1501
