"""Which groups of a graph int8 hurts, and how much: measured one by one on the host, in nats at the end of the chain.

A group's loss is the divergence of the last part's output when this group alone is int8. Losses of single groups add up
well (docs/decisions/005-precision-search.md), so one pass over the groups is enough to plan any budget. A part's SNR is
recorded beside it and decides nothing: in Whisper it mostly measures silence.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, Field

from nightjar.graphs.fusion import Group, quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.process import run_parallel
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.fake_quantize import Ranges, fake_quantize, open_session
from nightjar.quantization.graph_rewrites import apply_rewrites, propose_rewrites
from nightjar.quantization.part_chain import Chain, Distance, PartFunction, open_sessions, part_function
from nightjar.quantization.ranges import collect_ranges

SMALL_BYTES = 2**25  # of a graph: one core part_function it as fast as two


class MeasurableChain(Protocol):
    """What a ranking asks of a chain of parts."""

    order: list[str]
    clips: int

    def distance(self, changed: Mapping[str, PartFunction]) -> Distance:
        """Run with some parts exchanged."""


Follow = Callable[[Mapping[str, Any], CalibrationSet, int, int], MeasurableChain]


class RankingSettings(BaseModel, frozen=True):
    """How a ranking is measured."""

    clips: int = Field(3, ge=1, description="calibration clips that go through all parts")
    steps: int = Field(8, ge=1, description="decoder steps per clip at most")
    range_samples: int = Field(24, ge=1, description="samples per part that the int8 ranges come from")
    rewrite_samples: int = Field(4, ge=1, description="samples per part that rewrites are found on")
    rewrites: bool = Field(True, description="rewrite the graphs where that is exact in float")


class GroupSensitivity(BaseModel, frozen=True):
    """One group: what it is, what it costs and what int8 loses there."""

    tensor: str
    kind: str
    nodes: tuple[str, ...]
    macs: int
    elements: int  # of the tensor put out
    parameters: int  # weights
    kl: float  # nats per step with this group alone in int8
    snr_db: float  # of the part's outputs, likewise


class Ranking(BaseModel, frozen=True):
    """The content of ranking.json; entries most harmful first."""

    settings: RankingSettings
    parts: dict[str, tuple[GroupSensitivity, ...]]
    rewrites: dict[str, list[dict[str, Any]]]
    io_kl: dict[str, float]  # nats per step with a part's outputs alone in int8: no plan gets below the sum
    clips: int
    steps: int


def rewritten(
    models: Mapping[str, Any], calibration: CalibrationSet, settings: RankingSettings
) -> dict[str, list[dict[str, Any]]]:
    """Propose rewrites for every part."""
    moves = {}
    for part, model in models.items():
        samples = calibration.samples(part, settings.rewrite_samples)
        moves[part] = propose_rewrites(model, samples) if settings.rewrites else []
    return moves


def rank(
    models: Mapping[str, Any],
    calibration: CalibrationSet,
    settings: RankingSettings | None = None,
    follow: Follow = Chain,
) -> Ranking:
    """Measure every group of every part (onnx.ModelProto by name) in int8, alone.

    follow: makes what runs the parts over the samples, of sessions by part, the set, and how many clips and steps.
    Deterministic for one machine. tiny.en with 6 clips of 6 steps took 4 minutes on two busy cores.
    """
    settings = settings or RankingSettings()
    moves = rewritten(models, calibration, settings)
    changed = {part: apply_rewrites(model, moves[part]) for part, model in models.items()}
    chain = follow(open_sessions(changed), calibration, settings.clips, settings.steps)
    groups = {part: quantizable_groups(model) for part, model in changed.items()}
    total, ended = sum(map(len, groups.values())), count(1)
    at_once = _at_once(changed)
    entries: dict[str, tuple[GroupSensitivity, ...]] = {}
    steps = 0
    io_kl: dict[str, float] = {}
    for part in chain.order:
        graph = Graph(changed[part])
        ranges = collect_ranges(changed[part], groups[part], calibration.samples(part, settings.range_samples))
        everything = {group.tensor for group in groups[part]}
        io = open_session(fake_quantize(graph, groups[part], ranges, everything, outputs=True))
        far = chain.distance({part: part_function(io)})
        io_kl[part], steps = _digits(far.kl), far.steps

        def measured(group: Group, part: str, graph: Graph, ranges: Ranges, everything: set[str]) -> GroupSensitivity:
            rounded = fake_quantize(graph, groups[part], ranges, everything - {group.tensor})
            session = open_session(rounded, 0 if at_once == 1 else 1)
            far = chain.distance({part: part_function(session)})
            tick(next(ended), total)
            return _entry(graph, group, far.kl, far.snr_db[part])

        calls = [partial(measured, group, part, graph, ranges, everything) for group in groups[part]]
        entries[part] = tuple(sorted(run_parallel(calls, at_once), key=lambda e: (-e.kl, e.tensor)))
    return Ranking(settings=settings, parts=entries, rewrites=moves, io_kl=io_kl, clips=chain.clips, steps=steps)


def _at_once(models: Mapping[str, Any]) -> int:
    """Say how many groups may be measured together: one per core where the graphs are small, else one on all cores."""
    largest = max(model.ByteSize() for model in models.values())
    return len(os.sched_getaffinity(0)) if largest < SMALL_BYTES else 1


def read_ranking(path: Path) -> Ranking:
    """Read ranking.json."""
    return Ranking.model_validate_json(path.read_bytes())


def _entry(graph: Graph, group: Group, kl: float, snr_db: float) -> GroupSensitivity:
    return GroupSensitivity(
        tensor=group.tensor,
        kind=group.kind,
        nodes=group.nodes,
        macs=group.macs,
        elements=math.prod(graph.shape(group.tensor)),
        parameters=sum(math.prod(graph.shape(name)) for name in group.weights),
        kl=_digits(kl),
        snr_db=round(snr_db, 2),
    )


def _digits(value: float) -> float:
    return float(f"{max(value, 0.0):.4g}")
