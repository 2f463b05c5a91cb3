"""A model's parts run one after the other over calibration samples, to see what a change in one does at the end.

The parts are linked by tensor names: what one puts out, the next reads. A decoder's samples are real steps of real
clips, so its output is compared on the true prefix: teacher-forced. onnxruntime is imported when used.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nightjar.errors import BadInput
from nightjar.graphs.fusion import logit_outputs
from nightjar.quantization.calibration_set import CalibrationIndex, CalibrationSet, PartSamples, Tensors
from nightjar.quantization.fake_quantize import open_session

PartFunction = Callable[
    [Tensors], Tensors
]  # a part: its inputs by name -> its outputs by name (the first one at least)

WIRES = {"audio": "hidden"}  # input ← output, where the names differ (Whisper's `window` and `static` decoders)


@dataclass(frozen=True)
class Distance:
    """How far changed parts lie from the float ones.

    kl: nats per step, of the last part's output read as logits; agree: steps with the same argmax, of `steps`;
    snr_db: per changed part, over all its outputs.
    """

    kl: float
    agree: int
    steps: int
    snr_db: dict[str, float] = field(default_factory=dict)


class Chain:
    """The float parts' outputs on some clips, and what changes there when parts are exchanged."""

    def __init__(
        self,
        sessions: Mapping[str, Any],
        calibration: CalibrationSet,
        clips: int,
        steps: int,
        wires: Mapping[str, str] = WIRES,
    ) -> None:
        self._wires = dict(wires)
        self.sessions = dict(sessions)
        self.order = _order(self.sessions, self._wires)
        self.last = self.order[-1]
        self.outputs = logit_outputs([value.name for value in self.sessions[self.last].get_outputs()])
        self.samples = choose_samples(calibration, self.order, self._fed, clips, steps)
        self.clips = len(next(iter(self.samples.values())))
        self._float = [self._forward(clip, {}, None) for clip in range(self.clips)]

    def distance(self, changed: Mapping[str, PartFunction]) -> Distance:
        """Run with some parts exchanged (host, simulator or board), and everything that depends on them."""
        kl, agree, steps = 0.0, 0, 0
        energy = {part: [0.0, 0.0] for part in changed}
        for clip, wanted in enumerate(self._float):
            got = self._forward(clip, changed, wanted)
            for part, sums in energy.items():
                for mine, theirs in zip(got[part], wanted[part], strict=True):
                    for output, value in theirs.items():
                        sums[0] += float((value.astype(np.float64) ** 2).sum())
                        sums[1] += float(((value.astype(np.float64) - mine[output]) ** 2).sum())
            for mine, theirs in zip(got[self.last], wanted[self.last], strict=True):
                right, left = (np.concatenate([made[name] for name in self.outputs], -1) for made in (theirs, mine))
                kl += kl_divergence(right, left)
                agree += int((right.argmax(-1) == left.argmax(-1)).all())
                steps += 1
        snr = {part: snr_decibels(signal, noise) for part, (signal, noise) in energy.items()}
        return Distance(kl / steps, agree, steps, snr)

    def _wanted(self, part: str) -> list[str]:
        """Name the outputs that matter: of the last part the logits alone."""
        names = [value.name for value in self.sessions[part].get_outputs()]
        return self.outputs if part == self.last else names

    def _fed(self, part: str) -> dict[str, tuple[str, str]]:
        """Return, per input of a part that another part makes, that part and its output's name."""
        return fed(self.sessions, self._wires)[part]

    def _forward(
        self, clip: int, changed: Mapping[str, PartFunction], known: Mapping[str, list[Tensors]] | None
    ) -> dict[str, list[Tensors]]:
        """Run a clip's samples through the parts in order; what no change reaches is taken from `known`."""
        made: dict[str, list[Tensors]] = {}
        touched: set[str] = set()
        for part in self.order:
            sources = self._fed(part)
            if known is not None and part not in changed and not touched & {p for p, _ in sources.values()}:
                made[part] = known[part]
                continue
            touched.add(part)
            run = changed[part] if part in changed else part_function(self.sessions[part], self._wanted(part))
            results = []
            for sample in self.samples[part][clip]:
                outputs = run(sample | {name: made[p][0][output] for name, (p, output) in sources.items()})
                results.append({name: outputs[name] for name in self._wanted(part)})
            made[part] = results
        return made


def part_function(session: Any, outputs: Sequence[str] | None = None) -> PartFunction:
    """Make a PartFunction of an onnxruntime session."""
    names = list(outputs or [value.name for value in session.get_outputs()])
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def choose_samples(
    calibration: CalibrationSet, order: Sequence[str], fed: Any, clips: int, steps: int
) -> dict[str, list[list[Tensors]]]:
    """Take clips that every part has samples of: per part, per clip, at most `steps` samples of the last part.

    Clips with most steps come first, as their samples cost one run of the other parts. A clip's number is in the names
    of its files. Raises BadInput where no clip goes through all parts.
    """
    last, numbered = order[-1], dict[str, dict[int, list[int]]]()
    for part in order:
        names = list(fed(part)) if part == last and fed(part) else []
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
        picked = [_spread(numbered[part][number], steps if part == last else 1) for number in drawn]
        entry = calibration.index.parts[part]
        flat = PartSamples(inputs=entry.inputs, samples=[entry.samples[i] for indices in picked for i in indices])
        loaded = CalibrationSet(calibration.folder, CalibrationIndex(seed=0, parts={part: flat})).samples(part)
        chosen[part] = [[next(loaded) for _ in indices] for indices in picked]
    return chosen


def fed(sessions: Mapping[str, Any], wires: Mapping[str, str] = WIRES) -> dict[str, dict[str, tuple[str, str]]]:
    """Return, per part and input that another part makes: that part and the output's name."""
    makers = {value.name: part for part, session in sessions.items() for value in session.get_outputs()}
    result: dict[str, dict[str, tuple[str, str]]] = {}
    for part, session in sessions.items():
        links = {}
        for name in (value.name for value in session.get_inputs()):
            output = name if name in makers else wires.get(name, "")
            if output in makers and makers[output] != part:
                links[name] = (makers[output], output)
        result[part] = links
    return result


def kl_divergence(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return KL(softmax(wanted) || softmax(got)) in nats, the mean over all rows."""
    left, right = (_log_softmax(values) for values in (wanted, got))
    return float((np.exp(left) * (left - right)).sum(-1).mean())


def snr_decibels(signal: float, noise: float) -> float:
    """Return a signal-to-noise ratio, 200 at most."""
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def _log_softmax(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(-1, keepdims=True)))


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """Take at most `most` indices, evenly from first to last."""
    places = np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))
    return [indices[place] for place in places]


def _order(sessions: Mapping[str, Any], wires: Mapping[str, str]) -> list[str]:
    """Order the parts so that each comes after what it reads."""
    links = {part: {p for p, _ in sources.values()} for part, sources in fed(sessions, wires).items()}
    order: list[str] = []
    while len(order) < len(links):
        ready = [part for part in links if part not in order and links[part] <= set(order)]
        if not ready:
            raise BadInput(f"the parts {', '.join(links)} read each other in a circle; this chain cannot be run")
        order += ready
    return order


def open_sessions(models: Mapping[str, Any]) -> dict[str, Any]:
    """Open a session per graph."""
    return {part: open_session(model) for part, model in models.items()}
