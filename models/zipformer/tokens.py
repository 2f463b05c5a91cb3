"""Text from the tokens of a transducer; host side."""

import re
from collections.abc import Mapping
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def text(tokens: list[int], model: Mapping[str, Any]) -> str:
    """Join the symbols of tokens as sherpa-onnx does: ▁ begins a word, `<0xE4>` is a byte; `model` is model.json."""
    data = b"".join(symbol_bytes(model["symbols"][token]) for token in tokens)
    return data.decode("utf-8", errors="replace").strip()


def symbol_bytes(symbol: str) -> bytes:
    """Return what a symbol adds to a text."""
    byte = BYTE.fullmatch(symbol)
    return bytes([int(byte[1], 16)]) if byte else symbol.replace("▁", " ").encode()
