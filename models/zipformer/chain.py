"""Run a transducer's parts over whole streams, to measure what a change in one costs at the end.

An error in a state is not in the logits of its own step but in those of later steps. So a changed encoder continues
from its own states, over the streams of the calibration set; the search follows the float path.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.zipformer.stream import Model, Tensors, follow, initial_states
from nightjar.graphs.onnx_session import PartFunction, part_function
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.part_chain import Distance, measure_distance

Context = tuple[int, ...]


class StreamChain:
    """The float parts' outputs on some streams, to compare with those of exchanged parts."""

    def __init__(
        self, model: Model, sessions: Mapping[str, Any], calibration: CalibrationSet, clips: int, steps: int
    ) -> None:
        """Run the float parts over at most `clips` streams; `steps` is for Whisper: here all rows count."""
        self.model, self.order = model, ["encoder", "decoder", "joiner"]
        self.streams = calibration.streams()[:clips]
        self.clips = len(self.streams)
        self._float = {part: part_function(session) for part, session in sessions.items()}
        self._steps = [self._encode(stream, self._float["encoder"]) for stream in self.streams]
        self._contexts = [follow(self, model, _rows(outputs))[0] for outputs in self._steps]  # on the float path
        self._decoded = self._decode(self._float["decoder"])
        self._logits = self._join(self._steps, self._decoded, self._float["joiner"])

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Any] = {}) -> Tensors:
        """Run a float part, as a Runner."""
        return self._float[part](inputs)

    def distance(self, changed: Mapping[str, PartFunction]) -> Distance:
        """Run with some parts exchanged (host, simulator or board), and every part that depends on them.

        A step is a row. The encoder's signal-to-noise ratio includes its states; an unchanged part has 200 dB.
        """
        steps = [self._encode(s, changed["encoder"]) for s in self.streams] if "encoder" in changed else self._steps
        decoded = self._decode(changed["decoder"]) if "decoder" in changed else self._decoded
        logits = self._join(steps, decoded, changed.get("joiner", self._float["joiner"]))
        pairs: dict[str, list[tuple[Mapping[Any, Any], ...]]] = {
            "encoder": [pair for both in zip(self._steps, steps, strict=True) for pair in zip(*both, strict=True)],
            "decoder": [(self._decoded, decoded)],
            "joiner": [({"": wanted}, {"": got}) for wanted, got in zip(self._logits, logits, strict=True)],
        }
        rows = [row for both in zip(self._logits, logits, strict=True) for row in zip(*both, strict=True)]
        return measure_distance(rows, {part: pairs[part] for part in changed})

    def _encode(self, stream: Any, run: PartFunction) -> list[Tensors]:
        states, steps = initial_states(self.model), []
        for x in stream:
            outputs = run({"x": x[None], **states})
            states = {s["input"]: outputs[s["output"]] for s in self.model["states"]}
            steps.append(outputs)
        return steps

    def _decode(self, run: PartFunction) -> dict[Context, Any]:
        every = sorted({context for contexts in self._contexts for context in contexts})
        return {context: run({"y": np.array([context], np.int64)})["decoder_out"] for context in every}

    def _join(self, streams: list[list[Tensors]], decoded: Mapping[Context, Any], run: PartFunction) -> list[Any]:
        logits = []
        for steps, contexts in zip(streams, self._contexts, strict=True):
            inputs = zip(_rows(steps), contexts, strict=True)
            logits.append(
                np.concatenate([run({"encoder_out": r[None], "decoder_out": decoded[c]})["logit"] for r, c in inputs])
            )
        return logits


def _rows(steps: list[Tensors]) -> Any:
    return np.concatenate([outputs["encoder_out"][0] for outputs in steps])
