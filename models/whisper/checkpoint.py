"""Find, check and open checkpoints: openai-whisper's `{"dims", "model_state_dict"}`, or a Hugging Face folder."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import Tensor
from whisper.model import ModelDimensions, Whisper

from models.whisper.huggingface import load_folder
from models.whisper.surgery import weight_shapes
from nightjar.device.part_io import class_and_line
from nightjar.errors import BadCheckpoint, DownloadFailed, UnknownName

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {"whisper-nano": ROOT / "data" / "whisper-nano" / "whisper-nano.pt"}
FORMAT = 'allowed is an openai-whisper file with "dims" and "model_state_dict", or a Hugging Face Whisper folder'
NEXT = "fetch it again, or pass another with --checkpoint"
DIMS = tuple(ModelDimensions.__dataclass_fields__)


@dataclass(frozen=True)
class Checkpoint:
    """One model: `dims` as openai-whisper names them, `state` its float32 tensors by name."""

    dims: dict[str, int]
    state: dict[str, Tensor]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Dimensions come from the file and are checked against its tensors, never against a table of sizes. Raises
    BadCheckpoint with one line for a file that is missing, truncated, unsafe, or whose tensors contradict its
    dimensions.
    """
    path = Path(path)
    if not path.exists():
        raise BadCheckpoint(
            f"no checkpoint at {path}: give an openai-whisper .pt file or a Hugging Face folder with --checkpoint"
        )
    content = load_folder(path) if path.is_dir() else _load_file(path)
    try:
        dims, state = _dims(content), _state(content)
        _check_tensors(dims, state)
    except ValueError as exc:
        raise BadCheckpoint(f"{path} is not a Whisper checkpoint: {exc}; {FORMAT}; {NEXT}") from exc
    return Checkpoint(dims, {name: tensor.float() for name, tensor in state.items()})


def _load_file(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a TorchScript archive is one
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # a corrupt or hostile pickle may raise anything
        raise BadCheckpoint(f"cannot read {path} as plain weights ({_first_sentence(exc)}): {FORMAT}; {NEXT}") from exc


def find_checkpoint(name: str) -> Path:
    """Find the file of a model by name; OpenAI's models are downloaded by openai-whisper's own loader.

    That loader has its own cache (XDG_CACHE_HOME or ~/.cache, then whisper/) and checksums. Raises UnknownName,
    DownloadFailed, or BadCheckpoint where a shipped file is absent.
    """
    if name in SHIPPED:
        if not SHIPPED[name].is_file():
            raise BadCheckpoint(
                f"the shipped checkpoint {SHIPPED[name]} is missing: restore it with "
                f"`git checkout data`, or pass another with --checkpoint"
            )
        return SHIPPED[name]
    urls: dict[str, str] = whisper._MODELS
    if name not in urls:
        raise UnknownName(
            f"no model {name!r}; have {', '.join([*SHIPPED, *urls])}, or give a file with --checkpoint: "
            "see `nightjar models`"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stale file in the cache is only fetched again
            return Path(str(whisper._download(urls[name], str(cache), False)))
    except (OSError, RuntimeError) as exc:  # URLError is an OSError; a bad checksum RuntimeError
        raise DownloadFailed(
            f"cannot download {name} ({_first_sentence(exc)}): run again when online, or pass a file you "
            f"have with --checkpoint PATH"
        ) from exc


def stock(checkpoint: Checkpoint, n_audio_ctx: int | None = None, positional: str = "first") -> Whisper:
    """Build openai-whisper itself with these weights: the reference of every port.

    n_audio_ctx: encoder rows of a shorter window (50 per second), by default the model's own; positional: whether it
    has the "first" or the "last" of the encoder's positional rows.
    """
    rows = n_audio_ctx or checkpoint.dims["n_audio_ctx"]
    model = Whisper(ModelDimensions(**{**checkpoint.dims, "n_audio_ctx": rows}))
    state = dict(checkpoint.state)
    table = state["encoder.positional_embedding"]
    state["encoder.positional_embedding"] = table[:rows] if positional == "first" else table[-rows:]
    model.load_state_dict(state)
    return model.eval()


def _first_sentence(exc: Exception) -> str:
    return class_and_line(exc).split(". ")[0][:180]


def _dims(content: Any) -> dict[str, int]:
    """Return the ten dimensions; raises ValueError."""
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        keys = sorted(map(str, content))[:4] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"it holds {keys}")
    dims = content["dims"]
    if not isinstance(dims, dict) or set(dims) != set(DIMS):
        raise ValueError(f"its dims must be {', '.join(DIMS)}")
    for name in DIMS:
        if type(dims[name]) is not int or not 0 < dims[name] < 1 << 24:
            raise ValueError(f"{name} is {dims[name]!r}")
    for side in ("audio", "text"):
        if dims[f"n_{side}_state"] % dims[f"n_{side}_head"]:
            raise ValueError(f"n_{side}_state does not divide into n_{side}_head heads")
    if dims["n_audio_state"] != dims["n_text_state"]:
        raise ValueError("n_audio_state and n_text_state differ")
    return {name: dims[name] for name in DIMS}


def _state(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors; raises ValueError."""
    state = content["model_state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError("its model_state_dict holds something other than tensors")
    return state


def _check_tensors(dims: dict[str, int], state: dict[str, Tensor]) -> None:
    """Raise ValueError where names, shapes or values contradict the dimensions."""
    if max(dims["n_audio_layer"], dims["n_text_layer"]) > 1000:
        raise ValueError("it has more than 1000 layers")
    wanted = weight_shapes(dims)
    if missing := sorted(wanted.keys() - state.keys()):
        raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} first")
    if unknown := sorted(state.keys() - wanted.keys()):
        raise ValueError(f"{len(unknown)} tensors are unknown, {unknown[0]} first")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)} where its dims give {shape}")
        if not state[name].is_floating_point():
            raise ValueError(f"{name} is {state[name].dtype}")
        if not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{name} holds values that are not finite")
