"""Which groups stay float: from a ranking to nested plans, and from measured plans to the one to build.

Plans are rungs of one ladder: each keeps float what the one before it keeps, and more. The order is loss per cost, so
the ladder is the same for every budget; a budget only says where to stop, and what was measured for one serves the
next.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from nightjar.errors import BadInput
from nightjar.quantization.sensitivity import GroupSensitivity, Ranking

HEAD = "vocabulary_head"
MOVED = 16  # multiply-accumulates that an element moved in float16 is worth: keeps norms and adds from being free
READ = 4.0  # and a weight read in float16: keeps a decoder from going float for its little arithmetic
MINOR = 0.05  # of the multiply-accumulates
STEP = 0.6  # ratio of the losses expected of neighbouring rungs
REAL = 0.3  # of what the ranking expects is what a simulator measures, over all rungs of tiny.en tried: 0.28 to 0.32
GUESSES = 3  # rungs tried where the last one's loss puts the budget, before halving
LOSS = 0.5  # nats per step: beyond it a transcript is noise, and finer rungs tell nothing

LayersByPart = dict[str, tuple[str, ...]]


class Expected(BaseModel, frozen=True):
    """What the ranking says of a plan; shares are of multiply-accumulates."""

    kl: float  # nats per step, sum over the int8 groups and the parts' outputs
    int8_mac_share: dict[str, float]  # per part, `total`, and the vocabulary head apart
    size_bytes: dict[str, int]  # weights: 1 byte in int8, 2 in float16


class Rung(BaseModel):
    """One plan: the ONNX tensors (of the rewritten graphs) whose groups stay float16."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    float16_layers: LayersByPart = Field(alias="float")
    whole: tuple[str, ...] = ()  # parts of which nothing is int8, so that they need not be quantized at all
    rewrites: dict[str, list[dict[str, Any]]]
    expected: Expected

    def key(self) -> str:
        """Name what is measured, whatever ranking it came from."""
        content = json.dumps([self.float16_layers, self.rewrites], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Measurement(BaseModel, frozen=True):
    """What a target measured of a rung on calibration clips, against the float graphs."""

    kl: float  # nats per step, teacher-forced
    agree: int  # of `tokens`, teacher-forced
    tokens: int
    steps: int  # that kl is the mean of: of a stream its rows, most of which say nothing
    delta_wer: float | None = None  # percent, free-running, where it was decoded
    delta_wer_low: float | None = None  # lower end of its paired 95 % interval: a few clips' words are mostly near ties
    new_bad: int = 0  # hypotheses newly empty, looping or capped
    snr_db: dict[str, float] = {}


class Budget(BaseModel, frozen=True):
    """What a plan may lose on calibration clips."""

    delta_wer: float = Field(0.5, description="percent")
    kl_per_percent: float = Field(gt=0, description="nats per step allowed for each percent; a family knows")

    @property
    def kl(self) -> float:
        """Return the divergence allowed, in nats per step."""
        return self.kl_per_percent * self.delta_wer

    def allows(self, measured: Measurement) -> bool:
        """Say whether a measured rung is within the budget: in nats, bad hypotheses, and words not shown to be more.

        Without an interval the point decides.
        """
        shown = measured.delta_wer if measured.delta_wer_low is None else measured.delta_wer_low
        words = shown is None or shown <= self.delta_wer
        return words and not measured.new_bad and measured.kl <= self.kl


def ladder(ranking: Ranking, calls: Mapping[str, float]) -> list[Rung]:
    """Make the rungs that a search tries: parts with under MINOR of the multiply-accumulates stay float as a whole.

    Their int8 would win no arithmetic, and a quantized file rounds everything that crosses its boundary, whatever the
    plan says: caches, keys, logits (docs/decisions/005-precision-search.md).
    """
    macs = {
        part: calls.get(part, 1.0) * sum(entry.macs for entry in entries if entry.kind != "head")
        for part, entries in ranking.parts.items()
    }
    minor = [part for part, count in macs.items() if count < MINOR * sum(macs.values())]
    return rungs(ranking, calls, whole=minor)


def rungs(
    ranking: Ranking,
    calls: Mapping[str, float] | None = None,
    weight_cost: float = READ,
    whole: Collection[str] = (),
) -> list[Rung]:
    """Make nested plans, most int8 first: nothing float, then ever less loss expected, then everything float.

    calls: how often each part runs per clip (1 where it is not named): the decoder, the mean steps of a hypothesis.
    weight_cost: multiply-accumulates that reading a weight in float16 is worth. At 0 only arithmetic counts, and a
    decoder, which has little of it, goes float early; the higher, the smaller the files. whole: parts that are float
    in every plan.
    """
    calls = calls or {}

    def order(pair: tuple[str, GroupSensitivity]) -> tuple[float, str, str]:
        part, entry = pair
        cost = calls.get(part, 1.0) * (entry.macs + MOVED * entry.elements + weight_cost * entry.parameters)
        return -entry.kl / cost, part, entry.tensor

    every = [(part, entry) for part, entries in ranking.parts.items() for entry in entries]
    always = [pair for pair in every if pair[0] in whole]
    pairs = sorted((pair for pair in every if pair[0] not in whole), key=order)
    left = sum(entry.kl for _, entry in pairs)
    result, kept, level = [_rung(ranking, always, calls)], list[tuple[str, GroupSensitivity]](), LOSS
    for pair in pairs:
        if left <= level and kept:
            result.append(_rung(ranking, [*always, *kept], calls))
            if not left:  # what remains loses nothing
                break
            while left <= level:
                level *= STEP
        kept.append(pair)
        left = sum(entry.kl for _, entry in pairs[len(kept) :])
    result.append(_rung(ranking, every, calls))
    return result


def search(
    ladder: Sequence[Rung],
    measure: Callable[[Rung], Measurement],
    budget: Budget,
    known: dict[str, Measurement] | None = None,
) -> tuple[Rung, Measurement]:
    """Find the most int8 rung within the budget: guesses by what is expected, then halves.

    `known` is read, and completed by what is measured.

    Loss grows with the int8 share from rung to rung, nearly; a rung found is one that was measured itself. Raises
    BadInput where even the last rung, nothing int8 that need not be, is beyond the budget.
    """
    known = {} if known is None else known
    asked = 0

    def allowed(number: int) -> bool:
        key = ladder[number].key()
        if key not in known:
            known[key] = measure(ladder[number])
        return budget.allows(known[key])

    low, high, found, share = 0, len(ladder) - 1, len(ladder) - 1, REAL
    while low <= high:
        likely = (n for n in range(low, high) if ladder[n].expected.kl * share <= budget.kl)
        number = next(likely, high) if asked < GUESSES else (low + high) // 2
        if allowed(number):
            found, high = number, number - 1
        else:
            low = number + 1
        asked += 1
        if ladder[number].expected.kl:
            share = known[ladder[number].key()].kl / ladder[number].expected.kl
    if not allowed(found):
        raise BadInput(
            "no precision plan is within the budget, not even the one that keeps everything out of int8: "
            "raise --search-delta-wer"
        )
    return ladder[found], known[ladder[found].key()]


def pareto(measured: Sequence[tuple[Rung, Measurement]]) -> list[dict[str, Any]]:
    """List what was measured by int8 share, as JSON; `dominated` where another has more int8 and less loss."""
    points = [
        {
            "int8_mac_share": rung.expected.int8_mac_share,
            "size_bytes": rung.expected.size_bytes,
            "float_tensors": {part: len(names) for part, names in rung.float16_layers.items()},
            "expected_kl": rung.expected.kl,
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


def write_plan(rung: Rung, path: Path) -> None:
    """Write plan.json."""
    path.write_text(rung.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")


def read_plan(path: Path) -> Rung:
    """Read plan.json."""
    return Rung.model_validate_json(path.read_bytes())


def _rung(ranking: Ranking, kept: Sequence[tuple[str, GroupSensitivity]], calls: Mapping[str, float]) -> Rung:
    keep = {part: tuple(sorted(e.tensor for p, e in kept if p == part)) for part in ranking.parts}
    whole = tuple(part for part, entries in ranking.parts.items() if len(keep[part]) == len(entries))
    loss, counted, sizes = sum(kl for part, kl in ranking.io_kl.items() if part not in whole), {}, {}
    for part, entries in ranking.parts.items():
        names = set(keep[part])
        loss += sum(entry.kl for entry in entries if entry.tensor not in names)
        counted[part] = [(entry.kind, entry.macs, entry.tensor in names) for entry in entries]
        sizes[part] = sum(entry.parameters * (2 if entry.tensor in names else 1) for entry in entries)
    expected = Expected(kl=float(f"{loss:.4g}"), int8_mac_share=_shares(counted, calls), size_bytes=sizes)
    return Rung(float16_layers=keep, whole=whole, rewrites=ranking.rewrites, expected=expected)


def _shares(counted: Mapping[str, Sequence[tuple[str, int, bool]]], calls: Mapping[str, float]) -> dict[str, float]:
    """Share int8 per part, in total and of the head, from (kind, macs, is float) of each group."""
    sums = {name: [0.0, 0.0] for name in (*counted, "total", HEAD)}
    for part, groups in counted.items():
        for kind, macs, is_float in groups:
            weight = macs * calls.get(part, 1.0)
            for name in (HEAD,) if kind == "head" else (part, "total"):
                sums[name][0] += 0.0 if is_float else weight
                sums[name][1] += weight
    return {name: round(int8 / total, 4) for name, (int8, total) in sums.items() if total}
