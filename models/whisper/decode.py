"""Whisper's decode loop over anything that runs parts: host, simulator or board; numpy only."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nightjar.features import log_mel

Tensors = dict[str, NDArray[Any]]
Model = Mapping[str, Any]  # model.json
Logits = Callable[[list[int]], NDArray[np.float32]]  # all tokens so far -> (n_vocab,)

MASKED = np.float32(-1e4)  # as in the graphs: finite for fp16 and int8, and 0 after softmax


class Runner(Protocol):
    """What a decode loop needs of a runner."""

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Any] = {}) -> Tensors:
        """Run one part; `constant` inputs stay the same objects for a whole clip."""


def features(wave: NDArray[np.float32], model: Model) -> Tensors:
    """Compute the encoder's input from float32 mono 16 kHz in [-1, 1]: mel (1, n_mels, n_frames)."""
    return {"mel": log_mel(wave, model["dims"]["n_mels"], model["n_frames"])[None]}


def encode(runner: Runner, features: Tensors, model: Model) -> Tensors:
    """Run the encoder: hidden (1, n_audio_ctx, d)."""
    return runner.run("encoder", features)


def decode(
    runner: Runner,
    encoded: Tensors,
    model: Model,
    language: str = "en",
    tables: Tensors | None = None,
) -> dict[str, Any]:
    """Decode greedily, token for token as whisper.decode does without timestamps.

    Returns `tokens` without prompt and eot, `steps` (decoder runs, the prompt's among them) and
    `capped` (stopped by a limit, not by eot). `encoded` keeps the cross-attention tensors that
    `cached` computes from it, so that a second call does not run them again. Raises ValueError for
    a language that the model does not have.
    """
    prompt, table = _prompt(model, language), model["tokens"]
    if model["recipe"]["decoder"] == "window":
        return _decode_window(runner, encoded, model, prompt, tables)
    logits, pick = _LOGITS[model["recipe"]["decoder"]](runner, encoded, model, tables), _picker(table)
    tokens = list(prompt)
    # whisper.decode samples max_tokens at most; a prefix longer than the graph has no room.
    last = min(len(prompt) + model["max_tokens"], model["recipe"]["decoder_length"] + 1)
    capped = True
    while len(tokens) < last:
        token = pick(logits(tokens), len(tokens) == len(prompt))
        if token == table["eot"]:
            capped = False
            break
        tokens.append(token)
    steps = len(tokens) - len(prompt) + (not capped)
    ...
