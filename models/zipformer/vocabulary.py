"""The bytes of a transducer's tokens, for boards; host side."""

from collections.abc import Mapping
from typing import Any

from models.zipformer.tokens import symbol_bytes

SILENT = ("<blk>", "<sos/eos>", "<unk>", "<eps>")


def token_bytes(model: Mapping[str, Any]) -> dict[int, bytes]:
    """Return what each token adds to a text, as `tokens.text` joins them; `model` is model.json."""
    return {n: symbol_bytes(symbol) for n, symbol in enumerate(model["symbols"]) if symbol not in SILENT}
