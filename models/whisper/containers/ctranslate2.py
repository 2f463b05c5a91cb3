"""Read a CTranslate2 folder (faster-whisper) in openai-whisper's names.

The layout of model.bin is that of CTranslate2's `python/ctranslate2/specs/model_spec.py`, version 6.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.whisper.containers.tokenizer import read_tokens
from models.whisper.containers.weights import Weights, dequantized
from nightjar.errors import BadCheckpoint

FILE = "model.bin"
VERSION = 6
SPEC = "WhisperSpec"
NEXT = "convert it with `ct2-transformers-converter`, or fetch it again, then give the folder with --checkpoint"
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
NAMES = {np.dtype(np.int8): "int8", np.dtype(np.int16): "int16"}

# A layer's modules in openai-whisper's names by CTranslate2's, each with the thirds or halves of its rows.
ATTENTION = {
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
NORMS = {
    "self_attention/layer_norm": "attn_ln",
    "attention/layer_norm": "cross_attn_ln",
    "ffn/layer_norm": "mlp_ln",
}


def load_ctranslate2(folder: Path) -> Weights:
    """Read a folder that `ct2-transformers-converter` wrote.

    float32 and float16 are exact; int8 and int16 are dequantized, which a note says. Raises BadCheckpoint for another
    layout or model, and for a file that is cut.
    """
    try:
        variables = _read(folder / FILE)
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise BadCheckpoint(f"cannot read {folder / FILE} as a CTranslate2 Whisper ({error}): {NEXT}") from error
    kinds = {NAMES[array.dtype] for name, array in variables.items() if f"{name}_scale" in variables}
    floats = {str(array.dtype) for name, array in variables.items() if name.endswith("layer_norm/gamma")}
    try:
        state = _renamed({name: _float(name, variables) for name in variables if not name.endswith("_scale")})
        dims = _dims(variables, state)
    except KeyError as error:
        raise BadCheckpoint(f"{folder / FILE} has no {error.args[0]}: {NEXT}") from error
    special, added = read_tokens(folder)
    dtype = "".join(sorted(kinds)) or "".join(sorted(floats))
    notes = (dequantized(dtype),) if kinds else ()
    return Weights("CTranslate2", dims, state, dtype, special, added, notes)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Read the variables of a model.bin; raises ValueError, struct.error or IndexError."""
    content, at = path.read_bytes(), 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(f"<{form}")
        return int(value)

    def text() -> str:
        nonlocal at
        size = take("H")
        at += size
        if at > len(content):
            raise ValueError("the file is cut")
        return content[at - size : at - 1].decode()

    version = take("I")
    if version != VERSION:
        raise ValueError(f"version {version}, known is {VERSION}")
    if (spec := text()) != SPEC:
        raise ValueError(f"it holds a {spec!r}, allowed is {SPEC}")
    take("I")  # the revision, which changes no layout
    variables = {}
    for _ in range(take("I")):
        name, shape = text(), [take("I") for _ in range(take("B"))]
        dtype, size = np.dtype(DTYPES[take("B")]), take("I")
        variables[name] = np.frombuffer(content, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    for _ in range(take("I")):  # aliases: two names of one variable
        alias, name = text(), text()
        variables[alias] = variables[name]
    return variables


def _float(name: str, variables: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return a variable, dequantized row by row where it has scales (value = integer / scale)."""
    array, scale = variables[name], variables.get(f"{name}_scale")
    if scale is None:
        return array
    return array / scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))


def _renamed(variables: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    state: dict[str, NDArray[Any]] = {}

    def norm(name: str, source: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = variables[f"{source}/gamma"], variables[f"{source}/beta"]

    def linear(names: tuple[str, ...], source: str) -> None:
        for kind in ("weight", "bias"):
            rows = np.split(variables[f"{source}/{kind}"], len(names))
            state.update({f"{name}.{kind}": part for name, part in zip(names, rows, strict=True)})

    for conv in ("conv1", "conv2"):
        linear((f"encoder.{conv}",), f"encoder/{conv}")
    for side, end in (("encoder", "ln_post"), ("decoder", "ln")):
        state[f"{side}.positional_embedding"] = variables[f"{side}/position_encodings/encodings"]
        norm(f"{side}.{end}", f"{side}/layer_norm")
        for i in range(_layers(variables, side)):
            there, here = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            for source, names in ATTENTION.items():
                if side == "decoder" or not source.startswith("attention"):
                    linear(tuple(f"{here}.{name}" for name in names), f"{there}/{source}")
            for source, name in NORMS.items():
                if side == "decoder" or not source.startswith("attention"):
                    norm(f"{here}.{name}", f"{there}/{source}")
    state["decoder.token_embedding.weight"] = variables["decoder/embeddings/weight"]
    # Whisper's keys have no bias; CTranslate2 keeps zeros for them.
    return {name: torch.from_numpy(array.copy()) for name, array in state.items() if not name.endswith("key.bias")}


def _dims(variables: dict[str, NDArray[Any]], state: dict[str, torch.Tensor]) -> dict[str, Any]:
    n_vocab, width = state["decoder.token_embedding.weight"].shape
    dims = {"n_mels": state["encoder.conv1.weight"].shape[1], "n_vocab": n_vocab}
    for kind, side in (("audio", "encoder"), ("text", "decoder")):
        dims[f"n_{kind}_ctx"] = state[f"{side}.positional_embedding"].shape[0]
        dims |= {f"n_{kind}_state": width, f"n_{kind}_head": int(variables[f"{side}/num_heads"])}
        dims[f"n_{kind}_layer"] = _layers(variables, side)
    return dims


def _layers(variables: dict[str, NDArray[Any]], side: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def is_ctranslate2(folder: Path) -> bool:
    """Return whether a folder is CTranslate2's: Hugging Face's config.json has a model_type, CTranslate2's none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    return (folder / FILE).is_file() and "model_type" not in config
