"""Run a model's parts one after the other over calibration samples, to measure what a change in one costs at the end.

Parts are linked by tensor names: the next part reads the outputs of the one before. A decoder's samples are real steps
of real clips, so its output is compared on the true prefix: teacher-forced.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nightjar.errors import BadInput
from nightjar.graphs.fusion import logit_outputs
from nightjar.quantization.calibration_set import CalibrationIndex, CalibrationSet, PartSamples, Tensors

PartFunction = Callable[[Tensors], Tensors]  # a part's inputs by name -> its outputs by name (the first at least)
Links = dict[str, tuple[str, str]]  # input -> the part that makes it, and its output's name there

RENAMED_INPUTS = {"audio": "hidden"}  # input: output, where names differ (Whisper's `window` and `static` decoders)


@dataclass(frozen=True)
class Distance:
    """The distance of changed parts from the float ones.

    kl: nats per step, of the last part's output read as logits; agree: steps with the same argmax, of `steps`;
    snr_db: per changed part, over all its outputs.
    """

    kl: float
    agree: int
    steps: int
    snr_db: dict[str, float] = field(default_factory=dict)


class Chain:
    """The float parts' outputs on some clips, to compare with those of exchanged parts."""

    def __init__(self, sessions: Mapping[str, Any], calibration: CalibrationSet, clips: int, steps: int) -> None:
        self.sessions = dict(sessions)
        self._links = part_links(self.sessions)
        self.order = _order(self._links)
        self.last = self.order[-1]
        outputs = {name: [v.name for v in session.get_outputs()] for name, session in self.sessions.items()}
        self._outputs = outputs | {self.last: logit_outputs(outputs[self.last])}  # that are compared
        self.samples = choose_samples(calibration, self.order, self._links[self.last], clips, steps)
        self.clips = len(next(iter(self.samples.values())))
        self._float = [self._forward(clip, {}, None) for clip in range(self.clips)]

    def distance(self, changed: Mapping[str, PartFunction]) -> Distance:
        """Run with some parts exchanged (host, simulator or board), and every part that depends on them."""
        kl, agree, steps = 0.0, 0, 0
        pairs: dict[str, list[tuple[Tensors, Tensors]]] = {part: [] for part in changed}
        for clip, wanted in enumerate(self._float):
            got = self._forward(clip, changed, wanted)
            for part, both in pairs.items():
                both += zip(wanted[part], got[part], strict=True)
            for mine, theirs in zip(got[self.last], wanted[self.last], strict=True):
                right, left = (
                    np.concatenate([made[name] for name in self._outputs[self.last]], -1) for made in (theirs, mine)
                )
                kl += kl_divergence(right, left)
                agree += int((right.argmax(-1) == left.argmax(-1)).all())
                steps += 1
        return Distance(kl / steps, agree, steps, {part: snr_decibels(both) for part, both in pairs.items()})

    def _forward(
        self, clip: int, changed: Mapping[str, PartFunction], known: Mapping[str, list[Tensors]] | None
    ) -> dict[str, list[Tensors]]:
        """Run a clip's samples through the parts in order; parts that no change reaches are taken from `known`."""
        made: dict[str, list[Tensors]] = {}
        affected: set[str] = set()
        for part in self.order:
            links, names = self._links[part], self._outputs[part]
            if known is not None and part not in changed and not affected & {source for source, _ in links.values()}:
                made[part] = known[part]
                continue
            affected.add(part)
            run = changed.get(part) or part_function(self.sessions[part], names)
            made[part] = []
            for sample in self.samples[part][clip]:
                outputs = run(sample | {name: made[p][0][output] for name, (p, output) in links.items()})
                made[part].append({name: outputs[name] for name in names})
        return made


def part_function(session: Any, outputs: Sequence[str] | None = None) -> PartFunction:
    """Make a function of an onnxruntime session."""
    names = list(outputs or [value.name for value in session.get_outputs()])
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def choose_samples(
    calibration: CalibrationSet, order: Sequence[str], last_links: Links, clips: int, steps: int
) -> dict[str, list[list[Tensors]]]:
    """Choose clips that every part has samples of; return per part, per clip, at most `steps` samples of the last part.

    Clips with most steps come first, as their samples cost one run of the other parts. A clip's number is in the names
    of its files. Raises BadInput where no clip goes through all parts.
    """
    last, numbered = order[-1], dict[str, dict[int, list[int]]]()
    for part in order:
        names = list(last_links) if part == last else []
        for index, sample in enumerate(calibration.index.parts[part].samples):
            file = sample[names[0]].file if names else next(iter(sample.values())).file
            number = re.search(r"\d{6}", file)
            if number:
                numbered.setdefault(part, {}).setdefault(int(number[0]), []).append(index)
    common = set.intersection(*(set(numbered.get(part, {})) for part in order))
    if not common:
        raise BadInput("no calibration clip has samples of every part; run the same command with --refresh calibrate")
    drawn = sorted(common, key=lambda number: (-len(numbered[last][number]), number))[:clips]
    chosen: dict[str, list[list[Tensors]]] = {}
    for part in order:
        picked = [_evenly(numbered[part][number], steps if part == last else 1) for number in drawn]
        entry = calibration.index.parts[part]
        flat = PartSamples(inputs=entry.inputs, samples=[entry.samples[i] for indices in picked for i in indices])
        loaded = CalibrationSet(calibration.folder, CalibrationIndex(seed=0, parts={part: flat})).samples(part)
        chosen[part] = [[next(loaded) for _ in indices] for indices in picked]
    return chosen


def part_links(sessions: Mapping[str, Any]) -> dict[str, Links]:
    """Return, per part, the inputs that other parts make."""
    makers = {value.name: part for part, session in sessions.items() for value in session.get_outputs()}
    result: dict[str, Links] = {}
    for part, session in sessions.items():
        result[part] = {}
        for name in (value.name for value in session.get_inputs()):
            output = name if name in makers else RENAMED_INPUTS.get(name, "")
            if output in makers and makers[output] != part:
                result[part][name] = (makers[output], output)
    return result


def kl_divergence(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return KL(softmax(wanted) || softmax(got)) in nats, the mean over all rows."""
    left, right = (_log_softmax(values) for values in (wanted, got))
    return float((np.exp(left) * (left - right)).sum(-1).mean())


def snr_decibels(pairs: Iterable[tuple[Mapping[Any, Any], Mapping[Any, Any]]]) -> float:
    """Return the signal-to-noise ratio over pairs of (wanted, got) tensors by name, 200 at most."""
    signal = noise = 0.0
    for wanted, got in pairs:
        for name, value in wanted.items():
            signal += float((value.astype(np.float64) ** 2).sum())
            noise += float(((value.astype(np.float64) - got[name]) ** 2).sum())
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def _log_softmax(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(-1, keepdims=True)))


def _evenly(indices: Sequence[int], most: int) -> list[int]:
    """Take at most `most` indices, evenly from first to last."""
    places = np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))
    return [indices[place] for place in places]


def _order(links: Mapping[str, Links]) -> list[str]:
    """Order the parts so that each comes after those it reads; raises BadInput for a circle."""
    order: list[str] = []
    while len(order) < len(links):
        ready = [part for part in links if part not in order and {p for p, _ in links[part].values()} <= set(order)]
        if not ready:
            raise BadInput(f"the parts {', '.join(links)} read each other in a circle; this chain cannot be run")
        order += ready
    return order
