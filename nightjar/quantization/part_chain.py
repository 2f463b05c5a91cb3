"""Run a model's parts one after the other over calibration samples, to measure what a change in one costs at the end.

Parts are linked by tensor names: the next part reads the outputs of the one before. A decoder's samples are real steps
of real clips, so its output is compared on the true prefix: teacher-forced.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import numpy as np

from nightjar.errors import BadInput
from nightjar.graphs.fusion import logit_outputs
from nightjar.graphs.onnx_session import PartFunction, part_function
from nightjar.quantization.calibration_set import CalibrationSet, Tensors, evenly

Links = dict[str, tuple[str, str]]  # input -> the part that makes it, and its output's name there

RENAMED_INPUTS = {"audio": "hidden"}  # input: output, where names differ (Whisper's `window` and `static` decoders)


class Distance(NamedTuple):
    """The distance of changed parts from the float ones.

    kl: nats per step, of the last part's output read as logits; agree: steps with the same argmax, of `steps`;
    snr_db: per changed part, over all its outputs.
    """

    kl: float
    agree: int
    steps: int
    snr_db: dict[str, float]


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
        pairs: dict[str, list[tuple[Tensors, Tensors]]] = {part: [] for part in (*changed, self.last)}
        for clip, wanted in enumerate(self._float):
            got = self._forward(clip, changed, wanted)
            for part, both in pairs.items():
                both += zip(wanted[part], got[part], strict=True)
        names = self._outputs[self.last]
        logits = [tuple(np.concatenate([made[n] for n in names], -1) for made in both) for both in pairs[self.last]]
        return measure_distance(logits, {part: pairs[part] for part in changed})

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


def measure_distance(
    logits: Sequence[tuple[np.ndarray, ...]], outputs: Mapping[str, Iterable[tuple[Mapping[Any, Any], ...]]]
) -> Distance:
    """Compare (wanted, got) logits of each step, and the outputs of each changed part."""
    kl = sum(kl_divergence(wanted, got) for wanted, got in logits)
    agree = sum(int((wanted.argmax(-1) == got.argmax(-1)).all()) for wanted, got in logits)
    snr_db = {part: snr_decibels(pairs) for part, pairs in outputs.items()}
    return Distance(kl / len(logits), agree, len(logits), snr_db)


def choose_samples(
    calibration: CalibrationSet, order: Sequence[str], last_links: Links, clips: int, steps: int
) -> dict[str, list[list[Tensors]]]:
    """Choose clips that every part has samples of; return per part, per clip, at most `steps` samples of the last part.

    Clips with most steps come first, as their samples cost one run of the other parts. A clip's number is in the names
    of its files. Raises BadInput where no clip goes through all parts.
    """
    last, numbered = order[-1], {part: dict[int, list[int]]() for part in order}
    for part, indices in numbered.items():
        for index, sample in enumerate(calibration.index.parts[part].samples):
            name = next(iter((last_links if part == last else {}) or sample))
            if number := re.search(r"\d{6}", sample[name].file):
                indices.setdefault(int(number[0]), []).append(index)
    common = set.intersection(*map(set, numbered.values()))
    if not common:
        raise BadInput("no calibration clip has samples of every part; run the same command with --refresh calibrate")
    drawn = sorted(common, key=lambda number: (-len(numbered[last][number]), number))[:clips]
    chosen: dict[str, list[list[Tensors]]] = {}
    for part in order:
        picked = [evenly(numbered[part][number], steps if part == last else 1) for number in drawn]
        chosen[part] = [list(calibration.samples(part, numbers=indices)) for indices in picked]
    return chosen


def part_links(sessions: Mapping[str, Any]) -> dict[str, Links]:
    """Return, per part, the inputs that other parts make."""
    makers = {value.name: part for part, session in sessions.items() for value in session.get_outputs()}
    result: dict[str, Links] = {part: {} for part in sessions}
    for part, session in sessions.items():
        for name in (value.name for value in session.get_inputs()):
            output = name if name in makers else RENAMED_INPUTS.get(name, "")
            if output in makers and makers[output] != part:
                result[part][name] = (makers[output], output)
    return result


def kl_divergence(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return KL(softmax(wanted) || softmax(got)) in nats, the mean over all rows."""
    left, right = (_log_softmax(values) for values in (wanted, got))
    return float((np.exp(left) * (left - right)).sum(-1).mean())


def snr_decibels(pairs: Iterable[tuple[Mapping[Any, Any], ...]]) -> float:
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


def _order(links: Mapping[str, Links]) -> list[str]:
    """Order the parts so that each comes after those it reads; raises BadInput for a circle."""
    try:
        return list(TopologicalSorter({p: [source for source, _ in links[p].values()] for p in links}).static_order())
    except CycleError as exc:
        raise BadInput(f"the parts {', '.join(links)} read each other in a circle; this chain cannot be run") from exc
