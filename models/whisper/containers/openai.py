"""Read an openai-whisper file, or a file of bare weights from a training loop, in openai-whisper's names."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.whisper.containers.huggingface import MERGE, is_adapter, openai_names
from models.whisper.containers.weights import Weights, derive_dims, dtype_of
from nightjar.device.part_io import class_and_line
from nightjar.errors import BadCheckpoint

FORMAT = (
    'allowed are an openai-whisper file with "dims" and "model_state_dict", bare weights, a ggml file, and a Hugging '
    "Face or CTranslate2 folder"
)
NEXT = "fetch it again, or pass another with --checkpoint"
STATES = ("model_state_dict", "state_dict", "model")  # keys under which training loops keep the weights
ANCHOR = "encoder.conv1.weight"  # a tensor that every Whisper has, by this name in each naming
HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1280: 20}  # of OpenAI's sizes, by width


def load_openai(path: Path) -> Weights:
    """Read a .pt file without running anything in it.

    A common prefix of the names (`module.`, `_orig_mod.`, `model.`) is removed, which a note says. Raises BadCheckpoint
    for a file that is not plain weights and for an adapter, ValueError for any other content that is not one Whisper.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a TorchScript archive is one
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as exc:  # a corrupt or hostile pickle may raise anything
        raise BadCheckpoint(f"cannot read {path} as plain weights ({first_sentence(exc)}): {FORMAT}; {NEXT}") from exc
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}")
    key = next((key for key in STATES if isinstance(content.get(key), dict)), None)
    state: Mapping[str, Any] = content[key] if key else {k: v for k, v in content.items() if k != "dims"}
    if is_adapter(map(str, state)):
        raise BadCheckpoint(f"{path} {MERGE.replace('FOLDER', path.name)}")
    prefixes = [str(name)[: -len(ANCHOR)] for name in state if str(name).endswith(ANCHOR)]
    if len(prefixes) > 1:
        raise ValueError(f"it holds {len(prefixes)} models, {' and '.join(map(repr, sorted(prefixes)))}")
    if not prefixes:
        raise ValueError(f"it holds {sorted(map(str, state))[:4]}")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("its weights hold something other than tensors")
    notes = []
    if prefixes[0]:
        state = {name.removeprefix(prefixes[0]): tensor for name, tensor in state.items()}
        notes.append(f"the prefix {prefixes[0]!r} of the tensors' names is removed")
    if any(re.match(r"(en|de)coder\.layers\.", name) for name in state):
        state = openai_names(state)
    dims = content.get("dims")
    if dims is None:
        dims = _derive_dims(state)
        notes.append(f"the file has no dims: they are derived from the shapes, with {dims['n_audio_head']} heads")
    return Weights("openai-whisper", dims, dict(state), dtype_of(state.values()), notes=tuple(notes))


def first_sentence(exc: Exception) -> str:
    """Return the first sentence of an error with its class."""
    return class_and_line(exc).split(". ")[0][:180]


def _derive_dims(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Derive dimensions from shapes, heads from the width as in OpenAI's sizes; raises ValueError for another width."""
    try:
        dims = derive_dims(state)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    width = dims["n_audio_state"]
    if width not in HEADS:
        raise ValueError(
            f"it has no dims, and its width {width} is none of OpenAI's ({', '.join(map(str, HEADS))}), so that its "
            'heads are unknown: save it as {"dims": {…, "n_audio_head": …}, "model_state_dict": …}'
        )
    return dims | {"n_audio_head": HEADS[width], "n_text_head": HEADS[width]}
