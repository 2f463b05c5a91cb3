"""Whisper's special tokens for a decode loop, and text from token ids; host side."""

import warnings
from collections.abc import Mapping
from typing import Any

from whisper.decoding import DecodingOptions, DecodingTask
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer

from nightjar.errors import BadCheckpoint

ENGLISH_ONLY = 51864  # entries of the English-only vocabulary
MULTILINGUAL = 51766  # entries of the multilingual one before its languages


def token_table(n_vocab: int) -> dict[str, Any]:
    """List the ids a decode loop needs to do what whisper.decode does by default.

    `suppress` is never sampled, `suppress_first` not as the first token. Raises BadCheckpoint for a vocabulary without
    a tokenizer in openai-whisper.
    """
    n_languages = n_vocab - MULTILINGUAL
    if n_vocab != ENGLISH_ONLY and not 99 <= n_languages <= len(LANGUAGES):
        raise BadCheckpoint(
            f"a vocabulary of {n_vocab} tokens is not Whisper's: allowed are {ENGLISH_ONLY} "
            f"(English only) and {MULTILINGUAL + 99} to {MULTILINGUAL + len(LANGUAGES)}; "
            f"pass another checkpoint with --checkpoint"
        )
    tokenizer = _load(False) if n_vocab == ENGLISH_ONLY else _load(True, n_languages)
    codes = list(LANGUAGES)[:n_languages] if n_vocab > ENGLISH_ONLY else []
    return {
        "sot": tokenizer.sot,
        "eot": tokenizer.eot,
        "transcribe": tokenizer.transcribe,
        "no_timestamps": tokenizer.no_timestamps,
        "timestamp_begin": tokenizer.timestamp_begin,
        # They follow `sot` in the order of LANGUAGES.
        "languages": {code: tokenizer.sot + 1 + i for i, code in enumerate(codes)},
        "suppress": _suppressed(tokenizer),
        "suppress_first": [*tokenizer.encoding.encode(" "), tokenizer.eot],
        "n_vocab": n_vocab,
    }


def text(tokens: list[int], model: Mapping[str, Any]) -> str:
    """Turn token ids into text as whisper.decode does: no timestamps, outer blanks stripped; `model` is model.json."""
    return load_tokenizer(model).decode(tokens).strip()


def load_tokenizer(model: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizer of a model.json."""
    return _load(bool(model["tokens"]["languages"]))


def _load(multilingual: bool, n_languages: int = 99) -> Tokenizer:
    """Load openai-whisper's tokenizer, which does not close its vocabulary file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return get_tokenizer(multilingual, num_languages=n_languages)


def _suppressed(tokenizer: Tokenizer) -> list[int]:
    """List the tokens that DecodingOptions(suppress_tokens="-1") suppresses, by openai-whisper's own code."""
    task = DecodingTask.__new__(DecodingTask)  # its constructor needs a whole model
    task.options, task.tokenizer = DecodingOptions(), tokenizer
    return list(task._get_suppress_tokens())
