"""The bytes of Whisper's tokens, for boards without a tokenizer; host side."""

import contextlib
from collections.abc import Mapping
from typing import Any

from models.whisper.tokens import vocabulary_of


def token_bytes(model: Mapping[str, Any]) -> dict[int, bytes]:
    """Return what each token adds to a text, as `tokens.text` joins them; `model` is model.json."""
    vocabulary = vocabulary_of(model)
    encoding, result = vocabulary.tokenizer.encoding, {}
    for token in range(min(model["tokens"]["timestamp_begin"], model["tokens"]["n_vocab"])):
        with contextlib.suppress(KeyError):  # a hole in the vocabulary
            result[token] = encoding.decode_single_token_bytes(token)
    return result | {token: text.encode() for token, text in vocabulary.added.items()}
