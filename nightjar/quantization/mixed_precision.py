"""Choose which layers stay float16: nested plans from a ranking, then the plan within a budget from measurements.

Plans are rungs of one ladder: the float16 layers of a rung include those of the rung before it. The order is loss per
cost, so the ladder is the same for every budget; a budget only decides where to stop, and a rung measured for one
budget serves the next.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from nightjar.errors import BadInput
from nightjar.quantization.npu_traits import DEFAULT_TRAITS
from nightjar.quantization.sensitivity import GroupSensitivity, Ranking

HEAD = "vocabulary_head"
# The cost of float16 in multiply-accumulates, so that layers with few of them are not free.
MACS_PER_ELEMENT = 16  # of a layer's output: norms and adds
MINOR_PART = 0.05  # share of the multiply-accumulates below which a part stays float as a whole
LOSS_RATIO = 0.6  # of the losses expected of neighbouring rungs
MOST_LOSS = 0.5  # nats per step: beyond it a transcript is noise, and finer rungs tell nothing
GUESSES = 3  # rungs tried by the expected loss before the search halves

LayersByPart = dict[str, tuple[str, ...]]


class Expected(BaseModel, frozen=True):
    """What the ranking expects of a plan; shares are of multiply-accumulates."""

    kl: float  # nats per step, sum over the int8 groups and the parts' outputs
    int8_mac_share: dict[str, float]  # per part, `total`, and the vocabulary head apart
    size_bytes: dict[str, int]  # weights: 1 byte in int8, 2 in float16


class Rung(BaseModel):
    """One plan: the ONNX tensors (of the rewritten graphs) whose groups stay float16."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    float16_layers: LayersByPart = Field(alias="float")
    whole: tuple[str, ...] = ()  # parts with no int8 at all, which need not be quantized
    rewrites: dict[str, list[dict[str, Any]]]
    expected: Expected

    def key(self) -> str:
        """Return a name for the plan's content, whatever ranking it came from."""
        content = json.dumps([self.float16_layers, self.rewrites], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Measurement(BaseModel, frozen=True):
    """What a target measured of a rung on calibration clips, against the float graphs."""

    kl: float  # nats per step, teacher-forced
    agree: int  # of `tokens`, teacher-forced
    tokens: int
    steps: int  # that kl is the mean of: of a stream its rows, most of which are blank
    delta_wer: float | None = None  # percent, free-running, where it was decoded
    delta_wer_low: float | None = None  # lower end of its paired 95 % interval: a few clips' words are mostly near ties
    new_bad: int = 0  # hypotheses newly empty, looping or capped
    snr_db: dict[str, float] = {}


class Budget(BaseModel, frozen=True):
    """What a plan may lose on calibration clips."""

    delta_wer: float = Field(0.5, description="percent")
    kl_per_percent: float = Field(gt=0, description="nats per step for each percent; a model family's constant")

    @property
    def kl(self) -> float:
        """Return the divergence allowed, in nats per step."""
        return self.kl_per_percent * self.delta_wer

    def allows(self, measured: Measurement) -> bool:
        """Return whether a rung is within the budget: in nats, bad hypotheses, and words not proven to be more.

        Without an interval the point estimate decides.
        """
        delta = measured.delta_wer if measured.delta_wer_low is None else measured.delta_wer_low
        return (delta is None or delta <= self.delta_wer) and not measured.new_bad and measured.kl <= self.kl


def ladder(ranking: Ranking, calls: Mapping[str, float]) -> list[Rung]:
    """Make the rungs of a search.

    Where a quantized file rounds everything that crosses its boundary, whatever the plan says (caches, keys, logits),
    parts with under MINOR_PART of the multiply-accumulates stay float as a whole: int8 would win little arithmetic
    there (docs/decisions/005-precision-search.md).
    """
    if not ranking.settings.traits.integer_outputs:
        return rungs(ranking, calls)
    macs = {
        part: calls.get(part, 1.0) * sum(entry.macs for entry in entries if entry.kind != "head")
        for part, entries in ranking.parts.items()
    }
    minor = [part for part, count in macs.items() if count < MINOR_PART * sum(macs.values())]
    return rungs(ranking, calls, whole=minor)


def rungs(ranking: Ranking, calls: Mapping[str, float], whole: Collection[str] = ()) -> list[Rung]:
    """Make nested plans, most int8 first: nothing float, then ever less loss expected, then everything float.

    calls: how often each part runs per clip (1 where absent): the decoder, the mean steps of a hypothesis. whole: parts
    that are float in every plan.
    """

    def order(pair: tuple[str, GroupSensitivity]) -> tuple[float, str, str]:
        part, entry = pair
        macs = entry.macs + MACS_PER_ELEMENT * entry.elements + ranking.settings.traits.weight_macs * entry.parameters
        return -entry.kl / (calls.get(part, 1.0) * macs), part, entry.tensor

    every = [(part, entry) for part, entries in ranking.parts.items() for entry in entries]
    always = [pair for pair in every if pair[0] in whole]
    pairs = sorted((pair for pair in every if pair[0] not in whole), key=order)
    left = sum(entry.kl for _, entry in pairs)
    result, float16, level = [_rung(ranking, always, calls)], list[tuple[str, GroupSensitivity]](), MOST_LOSS
    for pair in pairs:
        if left <= level and float16:
            result.append(_rung(ranking, [*always, *float16], calls))
            if not left:  # what remains loses nothing
                break
            while left <= level:
                level *= LOSS_RATIO
        float16.append(pair)
        left = sum(entry.kl for _, entry in pairs[len(float16) :])
    result.append(_rung(ranking, every, calls))
    return result


def search(
    ladder: Sequence[Rung],
    measure: Callable[[Rung], Measurement],
    budget: Budget,
    known: dict[str, Measurement] | None = None,
    measured_share: float = DEFAULT_TRAITS.measured_loss_share,
) -> tuple[Rung, Measurement]:
    """Find the most int8 rung within the budget: first by the expected loss, then by halving.

    Loss grows with the int8 share from rung to rung, nearly; the rung found was measured itself. known: measurements by
    key, read and added to. measured_share: of the expected loss, the part that the target measures (npu_traits.py).
    Raises BadInput where even the last rung, with no int8 that can be avoided, is beyond the budget.
    """
    known = {} if known is None else known

    def measured(rung: Rung) -> Measurement:
        if rung.key() not in known:
            known[rung.key()] = measure(rung)
        return known[rung.key()]

    low, high, found, tried = 0, len(ladder) - 1, len(ladder) - 1, 0
    while low <= high:
        likely = (n for n in range(low, high) if ladder[n].expected.kl * measured_share <= budget.kl)
        number = next(likely, high) if tried < GUESSES else (low + high) // 2
        result = measured(ladder[number])
        if budget.allows(result):
            found, high = number, number - 1
        else:
            low = number + 1
        tried += 1
        if ladder[number].expected.kl:
            measured_share = result.kl / ladder[number].expected.kl
    result = measured(ladder[found])
    if not budget.allows(result):
        raise BadInput(
            "no precision plan is within the budget, not even the one without int8 layers: raise --search-delta-wer"
        )
    return ladder[found], result


def pareto(measured: Sequence[tuple[Rung, Measurement]], taken: Rung) -> list[dict[str, Any]]:
    """List measured rungs by int8 share, as JSON; `dominated` where another has more int8 and less loss.

    taken: the rung that the search ended with; two rungs may have equal shares, so it is marked itself.
    """
    points = [
        {
            "int8_mac_share": rung.expected.int8_mac_share,
            "size_bytes": rung.expected.size_bytes,
            "float_tensors": {part: len(names) for part, names in rung.float16_layers.items()},
            "expected_kl": rung.expected.kl,
            "taken": rung.key() == taken.key(),
            **result.model_dump(),
        }
        for rung, result in measured
    ]
    points.sort(key=lambda point: (-point["int8_mac_share"]["total"], point["kl"]))
    for point in points:
        point["dominated"] = any(
            other is not point
            and other["int8_mac_share"]["total"] >= point["int8_mac_share"]["total"]
            and other["kl"] < point["kl"]
            for other in points
        )
    return points


def _rung(ranking: Ranking, float16: Sequence[tuple[str, GroupSensitivity]], calls: Mapping[str, float]) -> Rung:
    layers = {part: tuple(sorted(e.tensor for p, e in float16 if p == part)) for part in ranking.parts}
    whole = tuple(part for part, entries in ranking.parts.items() if len(layers[part]) == len(entries))
    loss, sizes = sum(kl for part, kl in ranking.io_kl.items() if part not in whole), dict.fromkeys(ranking.parts, 0)
    all_macs = dict.fromkeys((*ranking.parts, "total", HEAD), 0.0)
    int8_macs = dict(all_macs)
    for part, entries in ranking.parts.items():
        names = set(layers[part])
        for entry in entries:
            is_float, macs = entry.tensor in names, entry.macs * calls.get(part, 1.0)
            loss += 0.0 if is_float else entry.kl
            sizes[part] += entry.parameters * (2 if is_float else 1)
            for name in (HEAD,) if entry.kind == "head" else (part, "total"):
                all_macs[name] += macs
                int8_macs[name] += 0.0 if is_float else macs
    shares = {name: round(int8_macs[name] / macs, 4) for name, macs in all_macs.items() if macs}
    expected = Expected(kl=float(f"{loss:.4g}"), int8_mac_share=shares, size_bytes=sizes)
    return Rung(float16_layers=layers, whole=whole, rewrites=ranking.rewrites, expected=expected)
