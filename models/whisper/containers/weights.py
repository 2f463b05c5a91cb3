"""What every container gives: openai-whisper's tensors by name, and what it says about the model."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

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


def dtype_of(tensors: Iterable[Tensor]) -> str:
    """Return the dtype that most of the values have: float16, float32, bfloat16."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + tensor.numel()
    return max(sizes, key=lambda name: sizes[name], default="nothing")


def dequantized(dtype: str) -> str:
    """Return the note on weights that were kept in integers."""
    return f"the checkpoint keeps its weights as {dtype}: they are dequantized, and no longer those that were trained"
