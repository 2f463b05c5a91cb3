"""Read a ggml file (whisper.cpp) in openai-whisper's names.

The layout is that of whisper.cpp's `models/convert-pt-to-ggml.py`; quantized blocks are those of ggml.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from models.whisper.containers.tokenizer import SOT, STARTS
from models.whisper.containers.weights import Cursor, Weights
from nightjar.errors import BadCheckpoint

MAGIC = b"lmgg"
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

    float32 and float16 are exact; q4, q5, q8 and the others are dequantized. Raises BadCheckpoint for a file that is
    cut, and for a type of numbers that ggml's library does not know.
    """
    try:
        dims, tokens, tensors, kinds = _read(path)
    except (OSError, ValueError, MemoryError, NotImplementedError) as error:
        raise BadCheckpoint(f"cannot read {path} as a ggml Whisper ({error}): {NEXT}") from error
    quantized = sorted(set(kinds.values()) - {*FLOATS.values()})
    dtype = ", ".join(quantized) or kinds.get("decoder.token_embedding.weight", "float32")
    return Weights("ggml", dims, tensors, dtype, {SOT: STARTS[ENGLISH_END not in tokens]} if tokens else None)


def _read(path: Path) -> tuple[dict[str, Any], list[bytes], dict[str, torch.Tensor], dict[str, str]]:
    """Return dimensions, vocabulary, tensors, and each tensor's type of numbers."""
    cursor = Cursor(path.read_bytes())
    cursor.cut(len(MAGIC))
    dims = dict(zip(DIMS, cursor.take(len(DIMS)), strict=True))
    cursor.take()  # the type of most numbers, which each tensor says again
    n_mels, n_fft = cursor.take(2)
    cursor.cut(4 * n_mels * n_fft)  # the mel filters
    tokens = [bytes(cursor.cut(*cursor.take())) for _ in range(*cursor.take())]
    tensors, kinds = {}, {}
    while cursor.at < len(cursor.content):
        n_dims, name_size, kind = cursor.take(3)
        shape = cursor.take(n_dims)[::-1]
        name = str(cursor.cut(name_size), "utf-8")
        quantization = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        data = np.frombuffer(cursor.cut(math.prod(shape) // block * block_bytes), np.uint8)
        array = dequantize(data.reshape(*shape[:-1], -1), quantization)
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            array = array.reshape(-1)  # kept as a column
        tensors[name] = torch.from_numpy(array.copy())
        kinds[name] = FLOATS.get(kind) or quantization.name.lower()
    return dims, tokens, tensors, kinds
