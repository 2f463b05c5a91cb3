"""A streaming transducer over anything that runs parts: host, simulator or board; numpy only.

Chunks overlap as sherpa-onnx cuts them: a chunk has `frames` frames, `shift` of them new. A chunk runs when one frame
more than it needs is there (sherpa-onnx's IsReady is strict), so that both run the same chunks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nightjar.device.kaldi_fbank import SAMPLE_RATE_HZ, SHIFT, fbank

Array = NDArray[Any]
Tensors = dict[str, Array]
Model = Mapping[str, Any]  # model.json

BLANK = 0
NO_TOKEN = -1  # in a context; the decoder gives its row no weight
TAIL_FRAMES = 30  # of silence after the speech at least: a word ends a little after its sound
WATCHED = 48  # chunks of a stream whose states are recorded: all of an hour's would take gigabytes


class Runner(Protocol):
    """The interface of a runner that a stream needs."""

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Array] = {}) -> Tensors:
        """Run one part."""


class StreamError(ValueError):
    """A runtime returned a state or an output that no stream can continue from."""


def initial_states(model: Model) -> Tensors:
    """Return the states that a stream begins with, all zeros, by the encoder's input names."""
    inputs = {entry["name"]: entry for entry in model["parts"]["encoder"]["inputs"]}
    return {s["input"]: np.zeros(inputs[s["input"]]["shape"], inputs[s["input"]]["dtype"]) for s in model["states"]}


def run_chunk(runner: Runner, x: Array, states: Tensors, model: Model, number: int) -> tuple[Array, Tensors, Tensors]:
    """Run chunk `number` of a stream: x (frames, 80) -> rows (n, width), the next states, and all outputs.

    Raises StreamError, with the chunk and the tensor, for a shape that is not the graph's, a NaN or an infinity.
    """
    outputs = runner.run("encoder", {"x": x[None], **states})
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in model["parts"]["encoder"]["outputs"]}
    for name, value in outputs.items():
        if value.shape != shapes[name]:
            raise StreamError(f"chunk {number}: {name} has shape {value.shape}, not {shapes[name]}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            what = "NaN" if np.isnan(value).any() else "infinity"
            raise StreamError(f"chunk {number}: {name} holds {what}: the stream cannot continue")
    following = {s["input"]: outputs[s["output"]] for s in model["states"]}
    return outputs[next(iter(shapes))][0], following, outputs


def count_chunks(n_samples: int, model: Model) -> int:
    """Count the chunks of a clip's stream: the last one reaches TAIL_FRAMES after the speech."""
    frames, shift = int(model["chunk"]["frames"]), int(model["chunk"]["shift"])
    wanted = (n_samples + SHIFT // 2) // SHIFT + TAIL_FRAMES
    return 1 + max(0, -(-(wanted - frames) // shift))


def tail_samples(n_samples: int, model: Model) -> int:
    """Return the samples of silence that end a stream, so that its last chunk is complete."""
    frames, shift = int(model["chunk"]["frames"]), int(model["chunk"]["shift"])
    return ((count_chunks(n_samples, model) - 1) * shift + frames + 1) * SHIFT - n_samples


def chunks_of(wave: Array, model: Model, features: Callable[[Array], Array] = fbank) -> list[Array]:
    """Cut a whole clip, float32 mono 16 kHz in [-1, 1], into the chunks of a stream of it, (frames, 80) each."""
    silence = np.zeros(tail_samples(len(wave), model), np.float32)
    return cut_frames(features(np.concatenate([wave, silence])), model)


def cut_frames(frames: Array, model: Model) -> list[Array]:
    """Cut frames (n, 80) into chunks; the last has a frame behind it."""
    length, shift = model["chunk"]["frames"], model["chunk"]["shift"]
    return [frames[start : start + length] for start in range(0, len(frames) - length, shift)]


class Search:
    """Greedy search, at most one token a row, as in sherpa-onnx: its context begins with no token and a blank.

    forced: the token (0 for none) of each row that the search follows instead of the best one, to measure agreement.
    """

    def __init__(self, runner: Runner, model: Model, forced: list[int] | None = None) -> None:
        self.runner, self.model, self.forced = runner, model, forced
        self.silent = {BLANK, model["unknown"]}
        self.context = [NO_TOKEN] * (model["context"] - 1) + [BLANK]
        self.path: list[int] = []  # the best token of each row, 0 for none
        self._decoded: Array | None = None

    def step(self, row: Array) -> Array:
        """Take the next row (width,) and return its logits (vocabulary,)."""
        if self._decoded is None:
            self._decoded = self.runner.run("decoder", {"y": np.array([self.context], np.int64)})["decoder_out"]
        joined = self.runner.run("joiner", {"encoder_out": row[None], "decoder_out": self._decoded})
        logits = joined["logit"].reshape(-1)
        best = int(logits.argmax())
        taken = best = BLANK if best in self.silent else best
        if self.forced is not None:
            taken = self.forced[len(self.path)] if len(self.path) < len(self.forced) else BLANK
        self.path.append(best)
        if taken != BLANK:
            self.context = [*self.context[1:], taken]
            self._decoded = None
        return logits

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        return [token for token in self.path if token != BLANK]


def follow(runner: Runner, model: Model, rows: Iterable[Array]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Search rows (width,) and return the context and the token of each, 0 for none."""
    search, contexts = Search(runner, model), []
    for row in rows:
        contexts.append(tuple(search.context))
        search.step(row)
    return contexts, search.path


def chunk_s(model: Model) -> float:
    """Return the seconds of speech that a chunk adds."""
    return float(model["chunk"]["shift"] * SHIFT / SAMPLE_RATE_HZ)


def watched_chunks(count: int) -> list[int]:
    """Name at most WATCHED of `count` chunks: all of the first ones, the rest evenly up to the last."""
    if count <= WATCHED:
        return list(range(count))
    first = WATCHED // 3
    return [*range(first), *np.linspace(first, count - 1, WATCHED - first).round().astype(int).tolist()]
