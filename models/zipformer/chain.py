"""A transducer's parts run over whole streams, to see what a change in one does to what is searched.

An error in a state is not in the logits of its own step: it is in those of the steps behind it. So a changed encoder
goes on from its own states, over streams that the calibration kept whole; the search follows the float path.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.zipformer.stream import Model, Search, Tensors, initial_states
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.part_chain import Distance, PartFunction, kl_divergence, part_function, snr_decibels


class StreamChain:
    """The float parts' outputs on some streams, and what changes there when parts are exchanged."""

    def __init__(
        self, model: Model, sessions: Mapping[str, Any], calibration: CalibrationSet, clips: int, steps: int
    ) -> None:
        """Run the float parts over at most `clips` streams; steps is Whisper's: all rows count."""
        self.model, self.order = model, ["encoder", "decoder", "joiner"]
        self.streams = calibration.streams()[:clips]
        self.clips = len(self.streams)
        self._float = {part: part_function(session) for part, session in sessions.items()}
        self._steps = [self._encode(stream, self._float["encoder"]) for stream in self.streams]
        self._contexts: list[list[tuple[int, ...]]] = []  # of each row, on the float path
        for made in self._steps:
            search, contexts = Search(_Parts(self._float), model), []
            for row in _rows(made):
                contexts.append(tuple(search.context))
                search.step(row)
            self._contexts.append(contexts)
        self._decoded = self._decode(self._float["decoder"])
        self._logits = self._join(self._steps, self._decoded, self._float["joiner"])

    def distance(self, changed: Mapping[str, PartFunction]) -> Distance:
        """Run with some parts exchanged (host, simulator or board), and everything that depends on them.

        A step is a row; the signal-to-noise ratio of the encoder is over its states too, and that of a part is 200 dB
        where nothing changed.
        """
        steps = [self._encode(s, changed["encoder"]) for s in self.streams] if "encoder" in changed else self._steps
        decoded = self._decode(changed["decoder"]) if "decoder" in changed else self._decoded
        logits = self._join(steps, decoded, changed.get("joiner", self._float["joiner"]))
        kl, agree, count = 0.0, 0, 0
        for wanted, got in zip(self._logits, logits, strict=True):
            for left, right in zip(wanted, got, strict=True):
                kl += kl_divergence(left, right)
                agree += int(left.argmax() == right.argmax())
                count += 1
        pairs: dict[str, list[tuple[Mapping[Any, Any], Mapping[Any, Any]]]] = {
            "encoder": [(a, b) for s, t in zip(self._steps, steps, strict=True) for a, b in zip(s, t, strict=True)],
            "decoder": [(self._decoded, decoded)],
            "joiner": [({"": a}, {"": b}) for a, b in zip(self._logits, logits, strict=True)],
        }
        return Distance(kl / count, agree, count, {part: _snr(pairs[part]) for part in changed})

    def _encode(self, stream: Any, run: PartFunction) -> list[Tensors]:
        states, made = initial_states(self.model), []
        for x in stream:
            outputs = run({"x": x[None], **states})
            states = {s["input"]: outputs[s["output"]] for s in self.model["states"]}
            made.append(outputs)
        return made

    def _decode(self, run: PartFunction) -> dict[tuple[int, ...], Any]:
        every = sorted({context for contexts in self._contexts for context in contexts})
        return {context: run({"y": np.array([context], np.int64)})["decoder_out"] for context in every}

    def _join(self, steps: list[list[Tensors]], decoded: Mapping[tuple[int, ...], Any], run: PartFunction) -> list[Any]:
        found = []
        for made, contexts in zip(steps, self._contexts, strict=True):
            inputs = zip(_rows(made), contexts, strict=True)
            found.append(
                np.concatenate([run({"encoder_out": r[None], "decoder_out": decoded[c]})["logit"] for r, c in inputs])
            )
        return found


class _Parts:
    """Runs as a Runner."""

    def __init__(self, parts: Mapping[str, PartFunction]) -> None:
        self._parts = parts

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Any] = {}) -> Tensors:
        return self._parts[part]({**inputs, **constant})


def _rows(made: list[Tensors]) -> Any:
    return np.concatenate([outputs["encoder_out"][0] for outputs in made])


def _snr(pairs: list[tuple[Mapping[Any, Any], Mapping[Any, Any]]]) -> float:
    signal = noise = 0.0
    for wanted, got in pairs:
        for name, value in wanted.items():
            signal += float((value.astype(np.float64) ** 2).sum())
            noise += float(((value.astype(np.float64) - got[name]) ** 2).sum())
    return snr_decibels(signal, noise)
