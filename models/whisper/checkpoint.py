"""Find, check and open checkpoints, whatever container holds them."""

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import Tensor
from whisper.model import ModelDimensions, TextDecoder, Whisper

from models.whisper.containers.ctranslate2 import is_ctranslate2, load_ctranslate2
from models.whisper.containers.ggml import is_ggml, load_ggml
from models.whisper.containers.huggingface import load_huggingface
from models.whisper.containers.openai import FORMAT, NEXT, first_sentence, load_openai
from models.whisper.containers.weights import Weights
from models.whisper.surgery import weight_shapes
from models.whisper.tokens import Vocabulary, identify
from nightjar.errors import BadCheckpoint, DownloadFailed, UnknownName

SHIPPED = {"whisper-nano": Path(__file__).resolve().parents[2] / "data" / "whisper-nano" / "whisper-nano.pt"}
DIMS = tuple(ModelDimensions.__dataclass_fields__)


@dataclass(frozen=True)
class Checkpoint:
    """One model: `dims` as openai-whisper names them, `state` its float32 tensors by name."""

    dims: dict[str, int]
    state: dict[str, Tensor]
    weights: Weights  # as the container holds them

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Which Whisper it is, by its tokenizer or size, and verified by its weights; raises BadCheckpoint."""
        return identify(self.dims["n_vocab"], self.weights.special, self.weights.added, self._first_step)

    @property
    def notes(self) -> list[str]:
        """List what results and report say of the checkpoint."""
        notes, dtype = [*self.weights.notes], self.weights.dtype
        if "float" not in dtype:
            notes.append(
                f"the checkpoint keeps its weights as {dtype}: they are dequantized, and no longer those that were "
                "trained"
            )
        added = self.dims["n_vocab"] - self.vocabulary.size
        with_added = f", with {added} added token{'s' * (added > 1)}" if added else ""
        return [*notes, f"it is {self.vocabulary.label}{with_added}"]

    def _first_step(self, token: int) -> Tensor:
        """Return the distribution (n_vocab,) that follows one token, without audio."""
        d = self.dims
        decoder = TextDecoder(d["n_vocab"], d["n_text_ctx"], d["n_text_state"], d["n_text_head"], d["n_text_layer"])
        decoder.load_state_dict({n[len("decoder.") :]: t for n, t in self.state.items() if n.startswith("decoder.")})
        with torch.inference_mode():
            logits: Tensor = decoder.eval()(torch.tensor([[token]]), torch.zeros(1, 1, d["n_text_state"]))
            return logits[0, -1].softmax(-1)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Dimensions come from the file and are checked against its tensors, never against a table of sizes. Raises
    BadCheckpoint with one line for a file that is missing, truncated, unsafe, or whose tensors contradict its
    dimensions.
    """
    weights, dims = _read(path, _check)
    state = {name: tensor.float() for name, tensor in weights.state.items()}
    return Checkpoint(dims, state, weights._replace(state={}))


def read_dims(path: Path) -> dict[str, int]:
    """Read a checkpoint's dimensions, its weights unseen; raises BadCheckpoint."""
    return _read(path, lambda dims, state: _check_dims(dims))[1]


def _read(path: Path, check: Callable[[Any, dict[str, Tensor]], dict[str, int]]) -> tuple[Weights, dict[str, int]]:
    if not path.exists():
        raise BadCheckpoint(f"no checkpoint at {path}: give one with --checkpoint; {FORMAT}")
    try:
        if path.is_dir():
            weights = load_ctranslate2(path) if is_ctranslate2(path) else load_huggingface(path)
        else:
            weights = load_ggml(path) if is_ggml(path) else load_openai(path)
        return weights, check(weights.dims, weights.state)
    except ValueError as exc:
        raise BadCheckpoint(f"{path} is not a Whisper checkpoint: {exc}; {FORMAT}; {NEXT}") from exc


def find_checkpoint(name: str) -> Path:
    """Find the file of a model by name; OpenAI's models are downloaded by openai-whisper's own loader.

    That loader has its own cache (XDG_CACHE_HOME or ~/.cache, then whisper/) and checksums. Raises UnknownName,
    DownloadFailed, or BadCheckpoint where a shipped file is absent.
    """
    if name in SHIPPED:
        if not SHIPPED[name].is_file():
            raise BadCheckpoint(
                f"the shipped checkpoint {SHIPPED[name]} is missing: restore it with `git checkout data`, or pass "
                "another with --checkpoint"
            )
        return SHIPPED[name]
    urls: dict[str, str] = whisper._MODELS
    if name not in urls:
        have = ", ".join([*SHIPPED, *urls])
        raise UnknownName(f"no model {name!r}; have {have}, or give a file with --checkpoint: see `nightjar models`")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stale file in the cache is only fetched again
            return Path(str(whisper._download(urls[name], str(cache), False)))
    except (OSError, RuntimeError) as exc:  # URLError is an OSError; a bad checksum RuntimeError
        raise DownloadFailed(
            f"cannot download {name} ({first_sentence(exc)}): run again when online, or pass a file you have with "
            "--checkpoint PATH"
        ) from exc


class _Stock(Whisper):
    """openai-whisper's model, told which Whisper it is: it goes by the size, which added tokens change."""

    vocabulary: Vocabulary

    @property
    def is_multilingual(self) -> bool:
        return self.vocabulary.multilingual

    @property
    def num_languages(self) -> int:
        return self.vocabulary.n_languages


def stock(checkpoint: Checkpoint) -> Whisper:
    """Build openai-whisper itself with these weights: the reference of every port."""
    model = _Stock(ModelDimensions(**checkpoint.dims))
    model.vocabulary = checkpoint.vocabulary
    model.load_state_dict(checkpoint.state)
    return model.eval()


def _check_dims(dims: Any) -> dict[str, int]:
    """Return the ten dimensions; raises ValueError where they contradict each other."""
    if not isinstance(dims, dict) or set(dims) != set(DIMS):
        raise ValueError(f"its dims must be {', '.join(DIMS)}")
    for name in DIMS:
        if type(dims[name]) is not int or not 0 < dims[name] < 1 << 24:
            raise ValueError(f"{name} is {dims[name]!r}")
    for side in ("audio", "text"):
        if dims[f"n_{side}_state"] % dims[f"n_{side}_head"]:
            raise ValueError(f"n_{side}_state does not divide into n_{side}_head heads")
        if dims[f"n_{side}_layer"] > 1000:
            raise ValueError("it has more than 1000 layers")
    if dims["n_audio_state"] != dims["n_text_state"]:
        raise ValueError("n_audio_state and n_text_state differ")
    return {name: dims[name] for name in DIMS}


def _check(given: Any, state: dict[str, Tensor]) -> dict[str, int]:
    """Return the dimensions; raises ValueError where names, shapes or values of tensors contradict them."""
    dims = _check_dims(given)
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
    return dims
