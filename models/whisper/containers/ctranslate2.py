"""Read a CTranslate2 folder (faster-whisper) in openai-whisper's names.

The layout of model.bin is that of CTranslate2's `python/ctranslate2/specs/model_spec.py`, version 6.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.whisper.containers.tokenizer import read_tokens
from models.whisper.containers.weights import Cursor, Weights, derive_dims
from nightjar.errors import BadCheckpoint
from nightjar.files import read_json_object

FILE = "model.bin"
VERSION = 6
SPEC = "WhisperSpec"
NEXT = "convert it with `ct2-transformers-converter`, or fetch it again, then give the folder with --checkpoint"
DTYPES = ("float32", "int8", "int16", "int32", "float16")

# Modules in openai-whisper's names by CTranslate2's; several share the rows of one matrix. Those of a layer come last.
MODULES = {
    "encoder/conv1": ("encoder.conv1",),
    "encoder/conv2": ("encoder.conv2",),
    "encoder/position_encodings": ("encoder.positional_embedding",),
    "encoder/layer_norm": ("encoder.ln_post",),
    "decoder/embeddings": ("decoder.token_embedding",),
    "decoder/position_encodings": ("decoder.positional_embedding",),
    "decoder/layer_norm": ("decoder.ln",),
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
ENDS = {"weight": ".weight", "gamma": ".weight", "bias": ".bias", "beta": ".bias", "encodings": ""}
VARIABLE = re.compile(rf"(\w+/layer_\d+/)?({'|'.join(MODULES)})/({'|'.join(ENDS)})")


def load_ctranslate2(folder: Path) -> Weights:
    """Read a folder that `ct2-transformers-converter` wrote.

    float32 and float16 are exact; int8 and int16 are dequantized. Raises BadCheckpoint for another layout or model, and
    for a file that is cut.
    """
    file = folder / FILE
    try:
        variables = _read(file)
        state = _renamed(variables)
        heads = [int(variables[f"{side}/num_heads"]) for side in ("encoder", "decoder")]
        dims = {**derive_dims(state), "n_audio_head": heads[0], "n_text_head": heads[1]}
    except KeyError as error:
        raise BadCheckpoint(f"{file} has no {error.args[0]}: {NEXT}") from error
    except (OSError, ValueError, IndexError) as error:
        raise BadCheckpoint(f"cannot read {file} as a CTranslate2 Whisper ({error}): {NEXT}") from error
    special, added = read_tokens(folder)
    quantized = {str(array.dtype) for name, array in variables.items() if f"{name}_scale" in variables}
    floats = {str(array.dtype) for name, array in variables.items() if name.endswith("layer_norm/gamma")}
    return Weights("CTranslate2", dims, state, "".join(sorted(quantized or floats)), special, added)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Read the variables of a model.bin; raises ValueError or IndexError."""
    cursor = Cursor(path.read_bytes())

    def number(dtype: str = "<u4") -> int:
        return cursor.take(1, dtype)[0]

    def text() -> str:
        return str(cursor.cut(number("<u2"))[:-1], "utf-8")

    if (version := number()) != VERSION:
        raise ValueError(f"version {version}, known is {VERSION}")
    if (spec := text()) != SPEC:
        raise ValueError(f"it holds a {spec!r}, allowed is {SPEC}")
    number()  # the revision, which changes no layout
    variables = {}
    for _ in range(number()):
        name, shape = text(), cursor.take(number("u1"), "<u4")
        dtype = DTYPES[number("u1")]
        variables[name] = np.frombuffer(cursor.cut(number()), dtype).reshape(shape)
    for _ in range(number()):  # aliases: two names of one variable
        alias, name = text(), text()
        variables[alias] = variables[name]
    return variables


def _renamed(variables: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Return the weights in openai-whisper's names; integers times their row's scale are dequantized."""
    state = {}
    for variable, array in variables.items():
        if not (match := VARIABLE.fullmatch(variable)):
            continue
        layer, module, end = match.groups("")
        if (scale := variables.get(f"{variable}_scale")) is not None:
            array = array / scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
        for name, rows in zip(MODULES[module], np.split(array, len(MODULES[module])), strict=True):
            name = layer.replace("/layer_", ".blocks.").replace("/", ".") + name + ENDS[end]
            if not name.endswith("key.bias"):  # Whisper's keys have none; CTranslate2 keeps zeros for them
                state[name] = torch.from_numpy(rows.copy())
    return state


def is_ctranslate2(folder: Path) -> bool:
    """Return whether a folder is CTranslate2's: Hugging Face's config.json has a model_type, CTranslate2's none."""
    return (folder / FILE).is_file() and "model_type" not in read_json_object(folder / "config.json")
