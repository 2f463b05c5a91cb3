"""Read the special tokens of a tokenizer that lies beside the weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from nightjar.errors import BadCheckpoint

Added = dict[int, str]
SOT = "<|startoftranscript|>"
FILES = ("tokenizer.json", "added_tokens.json", "vocabulary.json", "vocabulary.txt", "config.json")  # first one counts
STARTS = (50257, 50258)  # English-only and multilingual


def read_tokens(folder: Path) -> tuple[Mapping[str, int] | None, Added]:
    """Return the ids of the special tokens by content, and the texts of tokens that were added to Whisper's.

    They come from the first of FILES; of config.json it is the start token alone. None where the folder has no such
    file. Raises BadCheckpoint for a file that is not readable.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        return None, {}
    special: dict[str, int] = {}
    texts: Added = {}
    try:
        for content, token, is_special in _entries(file.name, file.read_text(encoding="utf-8")):
            if content.startswith("<|") and content.endswith("|>"):
                special[content] = token
            elif not is_special:
                texts[token] = content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"cannot read {file} ({type(error).__name__}: {error}): fetch it again, or give another folder with "
            "--checkpoint"
        ) from error
    if SOT not in special:
        return None, {}
    last = max(special.values())
    return special, {token: content for token, content in texts.items() if token > last}


def _entries(name: str, text: str) -> list[tuple[str, int, bool]]:
    """List content, id and "is it special?" of the tokens in a file."""
    if name == "vocabulary.txt":
        return [(line, token, False) for token, line in enumerate(text.split("\n"))]
    found = json.loads(text)
    if name == "tokenizer.json":
        return [(each["content"], each["id"], each["special"]) for each in found["added_tokens"]]
    if name == "added_tokens.json":
        return [(content, token, False) for content, token in found.items()]
    if name == "vocabulary.json":
        return [(content, token, False) for token, content in enumerate(found)]
    start = found.get("decoder_start_token_id")
    return [(SOT, start, True)] if start in STARTS else []  # any other is a default of the library that wrote the file
