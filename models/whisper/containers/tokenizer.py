"""Read the special tokens of a tokenizer that lies beside the weights."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nightjar.errors import BadCheckpoint

Added = dict[int, str]
SOT = "<|startoftranscript|>"
STARTS = (50257, 50258)  # English-only and multilingual


def read_tokens(folder: Path) -> tuple[Mapping[str, int] | None, Added]:
    """Return the ids of the special tokens by content, and the texts of tokens that were added to Whisper's.

    From tokenizer.json, else added_tokens.json, else the vocabulary, else config.json's start token; None where the
    folder has no such file. Raises BadCheckpoint for a file that is not readable.
    """
    special: dict[str, int] = {}
    texts: Added = {}
    for content, token, is_special in _entries(folder):
        if content.startswith("<|") and content.endswith("|>"):
            special[content] = token
        elif not is_special:
            texts[token] = content
    if SOT not in special:
        return None, {}
    last = max(special.values())
    return special, {token: content for token, content in texts.items() if token > last}


def _entries(folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield content, id and "is it special?" of tokens, from the first file that has any."""
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            yield from ((each["content"], each["id"], each["special"]) for each in _read(file)["added_tokens"])
        elif (file := folder / "added_tokens.json").is_file():
            yield from ((content, token, False) for content, token in _read(file).items())
        elif (file := folder / "vocabulary.json").is_file():
            yield from ((content, token, False) for token, content in enumerate(_read(file)))
        elif (file := folder / "vocabulary.txt").is_file():
            lines = file.read_text(encoding="utf-8").split("\n")
            yield from ((line, token, False) for token, line in enumerate(lines))
        elif (file := folder / "config.json").is_file():
            start = _read(file).get("decoder_start_token_id")
            if start in STARTS:  # any other is a default of the library that wrote the file
                yield SOT, start, True
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"cannot read {file} ({type(error).__name__}: {error}): fetch it again, or give another folder with "
            "--checkpoint"
        ) from error


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
