"""Read a ggml file (whisper.cpp) in openai-whisper's names.

The layout is that of whisper.cpp's `models/convert-pt-to-ggml.py`; quantized blocks are those of ggml.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from models.whisper.containers.tokenizer import SOT, STARTS
from models.whisper.containers.weights import Weights, dequantized
from nightjar.errors import BadCheckpoint

MAGIC = struct.pack("<I", 0x67676D6C)
DIMS = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)
FLOATS = {0: "float32", 1: "float16"}
ENGLISH_END = b" gazed"  # last token of the English-only vocabulary
NEXT = "fetch it again, or convert it with whisper.cpp's `models/convert-pt-to-ggml.py`, and give it with --checkpoint"


def is_ggml(path: Path) -> bool:
    """Return whether a file is ggml's."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def load_ggml(path: Path) -> Weights:
    """Read a file of whisper.cpp.

    float32 and float16 are exact; q4, q5, q8 and the others are dequantized, which a note says. Raises BadCheckpoint
    for a file that is cut, and for a type of numbers that ggml's library does not know.
    """
    try:
        dims, tokens, tensors, kinds = _read(path)
    except (OSError, ValueError, struct.error, OverflowError, MemoryError, NotImplementedError) as error:
        raise BadCheckpoint(f"cannot read {path} as a ggml Whisper ({error}): {NEXT}") from error
    quantized = sorted(set(kinds.values()) - {*FLOATS.values()})
    dtype = ", ".join(quantized) or kinds.get("decoder.token_embedding.weight", "float32")
    special = {SOT: STARTS[ENGLISH_END not in tokens]} if tokens else None
    return Weights("ggml", dims, tensors, dtype, special, {}, (dequantized(dtype),) if quantized else ())


def _read(path: Path) -> tuple[dict[str, Any], list[bytes], dict[str, torch.Tensor], dict[str, str]]:
    """Return dimensions, vocabulary, tensors, and each tensor's type of numbers."""
    content = path.read_bytes()
    at = len(MAGIC)

    def take(count: int) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{count}i", content, at)
        at += 4 * count
        return values

    def cut(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(content):
            raise ValueError("the file is cut")
        at += size
        return content[at - size : at]

    dims = dict(zip(DIMS, take(len(DIMS)), strict=True))
    take(1)  # the type of most numbers, which each tensor says again
    n_mels, n_fft = take(2)
    cut(4 * n_mels * n_fft)  # the mel filters
    tokens = [cut(*take(1)) for _ in range(*take(1))]
    tensors, kinds = {}, {}
    while at < len(content):
        n_dims, name_size, kind = take(3)
        shape = take(n_dims)[::-1]
        name = cut(name_size).decode()
        quantization = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        data = np.frombuffer(cut(int(np.prod(shape)) // block * block_bytes), np.uint8)
        if kind in FLOATS:
            array = data.view(FLOATS[kind]).reshape(shape)
        else:
            array = dequantize(data.reshape(*shape[:-1], -1), quantization)
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            array = array.reshape(-1)  # kept as a column
        tensors[name] = torch.from_numpy(array.copy())
        kinds[name] = FLOATS.get(kind) or quantization.name.lower()
    return dims, tokens, tensors, kinds
