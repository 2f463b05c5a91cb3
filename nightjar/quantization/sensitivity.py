"""Rank the groups of a model's graphs by what int8 costs: each group alone in int8 on the host, in nats.

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
from typing import Any

from pydantic import BaseModel, Field

from nightjar.graphs.fusion import Group, quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session, open_sessions, part_function
from nightjar.process import run_parallel
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.fake_quantize import fake_quantize
from nightjar.quantization.graph_rewrites import apply_rewrites, propose_rewrites
from nightjar.quantization.npu_traits import DEFAULT_TRAITS, NpuTraits
from nightjar.quantization.part_chain import Chain
from nightjar.quantization.ranges import collect_ranges

CHEAP_MACS = 2e10  # of all samples together: about one run of tiny's encoder
SMALL_GRAPH_BYTES = 2**25  # below it one core runs a graph as fast as two


class RankingSettings(BaseModel, frozen=True):
    """How a ranking is measured."""

    clips: int = Field(3, ge=1, description="calibration clips that go through all parts")
    steps: int = Field(8, ge=1, description="decoder steps per clip at most")
    range_samples: int = Field(24, ge=1, description="samples per part that the int8 ranges come from, at least")
    rewrite_samples: int = Field(4, ge=1, description="samples per part that rewrites are found on, at least")
    cheap_samples: int = Field(
        200,
        ge=1,
        description="samples for both of a part that is cheap to run, at most",
    )
    rewrites: bool = Field(True, description="rewrite the graphs where that is exact in float")
    traits: NpuTraits = Field(DEFAULT_TRAITS, description="of the target's NPU")


class GroupSensitivity(BaseModel, frozen=True):
    """One group: its size, and its loss in int8."""

    tensor: str
    kind: str
    nodes: tuple[str, ...]
    macs: int
    elements: int  # of the output
    parameters: int  # weights
    kl: float  # nats per step with this group alone in int8
    snr_db: float  # of the part's outputs, likewise


class Ranking(BaseModel, frozen=True):
    """The content of ranking.json; groups of the largest loss first."""

    settings: RankingSettings
    parts: dict[str, tuple[GroupSensitivity, ...]]
    rewrites: dict[str, list[dict[str, Any]]]
    io_kl: dict[str, float]  # nats per step with a part's outputs alone in int8: no plan gets below the sum
    clips: int
    steps: int


def rank(
    models: Mapping[str, Any],
    calibration: CalibrationSet,
    settings: RankingSettings | None = None,
    make_chain: Callable[..., Any] = Chain,
) -> Ranking:
    """Measure every group of every part (onnx.ModelProto by name) alone in int8.

    make_chain: of sessions by part, the calibration set, and the most clips and steps; what it makes has `order`,
    `clips` and `distance` as Chain. Deterministic on one machine.
    tiny.en with 6 clips of 6 steps took 4 minutes on two busy cores.
    """
    settings = settings or RankingSettings()
    rewrites: dict[str, list[dict[str, Any]]] = {part: [] for part in models}
    for part, model in models.items() if settings.rewrites else ():
        samples = calibration.samples(part, _affordable(model, settings.rewrite_samples, settings))
        rewrites[part] = propose_rewrites(model, samples, settings.traits)
    rewritten = {part: apply_rewrites(model, rewrites[part]) for part, model in models.items()}
    chain = make_chain(open_sessions(rewritten), calibration, settings.clips, settings.steps)
    groups = {part: quantizable_groups(model) for part, model in rewritten.items()}
    total, finished = sum(map(len, groups.values())), count(1)
    # Small graphs run one per core, larger ones one after the other on all cores.
    largest = max(model.ByteSize() for model in rewritten.values())
    parallel = len(os.sched_getaffinity(0)) if largest < SMALL_GRAPH_BYTES else 1
    parts: dict[str, tuple[GroupSensitivity, ...]] = {}
    steps = 0
    io_kl: dict[str, float] = {}
    for part in chain.order:
        graph = Graph(rewritten[part])
        samples = calibration.samples(part, _affordable(rewritten[part], settings.range_samples, settings))
        ranges = collect_ranges(rewritten[part], groups[part], samples)
        tensors = {group.tensor for group in groups[part]}
        quantize = partial(fake_quantize, graph, groups[part], ranges)
        outputs_only = open_session(quantize(tensors, outputs=settings.traits.integer_outputs))
        distance = chain.distance({part: part_function(outputs_only)})
        io_kl[part], steps = _round(distance.kl), distance.steps

        def measure(
            group: Group, part: str, graph: Graph, quantize: Callable[..., Any], tensors: set[str]
        ) -> GroupSensitivity:
            session = open_session(quantize(tensors - {group.tensor}), 0 if parallel == 1 else 1)
            distance = chain.distance({part: part_function(session)})
            tick(next(finished), total)
            return GroupSensitivity(
                tensor=group.tensor,
                kind=group.kind,
                nodes=group.nodes,
                macs=group.macs,
                elements=math.prod(graph.shape(group.tensor)),
                parameters=sum(math.prod(graph.shape(name)) for name in group.weights),
                kl=_round(distance.kl),
                snr_db=round(distance.snr_db[part], 2),
            )

        calls = [partial(measure, group, part, graph, quantize, tensors) for group in groups[part]]
        parts[part] = tuple(sorted(run_parallel(calls, parallel), key=lambda entry: (-entry.kl, entry.tensor)))
    return Ranking(settings=settings, parts=parts, rewrites=rewrites, io_kl=io_kl, clips=chain.clips, steps=steps)


def _affordable(model: Any, least: int, settings: RankingSettings) -> int:
    """Return how many samples have CHEAP_MACS together, between `least` and `cheap_samples`."""
    macs = sum(group.macs for group in quantizable_groups(model))
    return max(least, min(settings.cheap_samples, int(CHEAP_MACS / max(macs, 1))))


def read_ranking(path: Path) -> Ranking:
    """Read ranking.json."""
    return Ranking.model_validate_json(path.read_bytes())


def _round(value: float) -> float:
    return float(f"{max(value, 0.0):.4g}")
