"""The bytes of Whisper's tokens, for boards without a tokenizer; host side."""

from collections.abc import Mapping
from typing import Any

from models.whisper.tokens import _load


def token_bytes(model: Mapping[str, Any]) -> dict[int, bytes]:
    """Return what each token adds to a text, as `tokens.text` joins them; `model` is model.json."""
    encoding = _load(multilingual=bool(model["tokens"]["languages"])).encoding
    result = {}
    for token in range(min(model["tokens"]["timestamp_begin"], model["tokens"]["n_vocab"])):
        try:
            result[token] = encoding.decode_single_token_bytes(token)
        except KeyError:  # a hole in the vocabulary
            continue
    return result
