"""What every container gives: openai-whisper's tensors by name, and what it says about the model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class Weights(NamedTuple):
    """One model as a container holds it, in openai-whisper's names.

    `dims` is None where the container has none. `dtype` is that of most values, as the container names it; `special`
    the ids of its tokenizer's special tokens by content, None without a tokenizer; `added` the texts of tokens beyond
    Whisper's own. `notes` are sentences for results and report.
    """

    container: str
    dims: dict[str, Any] | None
    state: dict[str, Any]
    dtype: str
    special: Mapping[str, int] | None = None
    added: Mapping[int, str] = {}
    notes: tuple[str, ...] = ()


class Cursor:
    """Read a binary file from front to end; raises ValueError where it is cut."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = memoryview(content), 0

    def cut(self, size: int) -> memoryview:
        """Take bytes, without a copy."""
        if size < 0 or self.at + size > len(self.content):
            raise ValueError("the file is cut")
        self.at += size
        return self.content[self.at - size : self.at]

    def take(self, count: int = 1, dtype: str = "<i4") -> list[int]:
        """Take integers of a numpy dtype."""
        return [int(value) for value in np.frombuffer(self.cut(np.dtype(dtype).itemsize * count), dtype)]


def dtype_of(tensors: Iterable[Tensor]) -> str:
    """Return the dtype that most of the values have: float16, float32, bfloat16."""
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return max(sizes, key=lambda name: sizes[name], default="nothing")


def derive_dims(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Derive every dimension but the heads from shapes; raises ValueError, and KeyError for a missing tensor."""
    width, n_mels, _ = state["encoder.conv1.weight"].shape
    n_vocab, n_text_state = state["decoder.token_embedding.weight"].shape
    dims = {"n_mels": n_mels, "n_vocab": n_vocab}
    for kind, side, n_state in (("audio", "encoder", width), ("text", "decoder", n_text_state)):
        layers = {match[1] for name in state if (match := re.match(rf"{side}\.blocks\.(\d+)\.", name))}
        n_ctx = len(state[f"{side}.positional_embedding"])
        dims |= {f"n_{kind}_ctx": n_ctx, f"n_{kind}_state": n_state, f"n_{kind}_layer": len(layers)}
    return dims
