"""The ranking finds planted sensitivities, and the search the most int8 plan within a budget."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from nightjar.errors import BadInput
from nightjar.graphs.fusion import fuse, quantizable_groups
from nightjar.graphs.onnx_session import open_session, open_sessions
from nightjar.quantization import mixed_precision as precision
from nightjar.quantization.fake_quantize import fake_quantize
from nightjar.quantization.graph_rewrites import apply_rewrites
from nightjar.quantization.mixed_precision import (
    HEAD,
    Budget,
    Measurement,
    pareto,
    rungs,
    search,
)
from nightjar.quantization.part_chain import Chain, part_function
from nightjar.quantization.ranges import collect_ranges
from nightjar.quantization.sensitivity import RankingSettings, rank
from tests.nightjar import planted

SETTINGS = RankingSettings(clips=4, steps=3, rewrites=False)
CALLS = {"decoder": 10.0}


@pytest.fixture(scope="module")
def models():
    return {"encoder": planted.encoder(outlier=60), "decoder": planted.decoder()}


@pytest.fixture(scope="module")
def calibration(models, tmp_path_factory):
    return planted.calibration(tmp_path_factory.mktemp("calibration"), models)


@pytest.fixture(scope="module")
def ranking(models, calibration):
    return rank(models, calibration, SETTINGS)


@pytest.fixture(scope="module")
def ladder(ranking):
    return rungs(ranking, CALLS)


def test_groups_that_lose_nothing_end_the_ladder(ranking):
    silent = {part: tuple(e.model_copy(update={"kl": 0.0}) for e in entries) for part, entries in ranking.parts.items()}
    loud = silent["encoder"][0].model_copy(update={"kl": 0.1})
    parts = {**silent, "encoder": (loud, *silent["encoder"][1:])}
    nothing, one, everything = rungs(ranking.model_copy(update={"parts": parts}), CALLS)
    assert sum(map(len, nothing.float16_layers.values())) == 0
    assert one.float16_layers == {"encoder": (loud.tensor,), "decoder": ()}
    assert sum(map(len, everything.float16_layers.values())) == sum(map(len, parts.values()))


def test_a_part_with_little_arithmetic_is_float_as_a_whole(ranking):
    plans = precision.ladder(ranking, CALLS)  # the decoder has 4 % of the multiply-accumulates
    decoder = {entry.tensor for entry in ranking.parts["decoder"]}
    assert all(set(rung.float16_layers["decoder"]) == decoder and "decoder" in rung.whole for rung in plans)
    assert "encoder" not in plans[0].whole
    assert set(plans[-1].whole) == {"encoder", "decoder"}
    assert plans[-1].expected.kl == 0  # what is not quantized has no int8 boundary
    first = ranking.io_kl["encoder"] + sum(entry.kl for entry in ranking.parts["encoder"])
    assert plans[0].expected.kl == pytest.approx(first, rel=1e-3)
    assert plans[0].expected.int8_mac_share["decoder"] == 0
    busy = precision.ladder(ranking, {"decoder": 1000.0})
    assert not busy[0].whole


def test_a_graph_falls_into_the_groups_a_compiler_fuses():
    kinds = {group.tensor: group.kind for group in fuse(planted.encoder())}
    assert kinds == {
        "ln1": "norm",
        "query": "linear",
        "key": "linear",
        "value": "linear",
        "mixed": "attention",
        "out": "linear",
        "res1": "add",
        "ln2": "norm",
        "fc1": "linear",
        "gelu": "gelu",
        "fc2": "linear",
        "res2": "add",
        "hidden": "norm",
    }
    macs = {group.tensor: group.macs for group in fuse(planted.encoder())}
    assert macs["mixed"] == 2 * planted.T * planted.T * planted.D
    assert macs["fc1"] == planted.T * planted.D * planted.H
    assert {g.tensor: g.kind for g in fuse(planted.decoder())}["logits"] == "head"


def test_the_ranking_finds_what_was_planted(ranking):
    losses = {entry.tensor: entry.kl for entry in ranking.parts["encoder"]}
    hurt = {"gelu", "fc1", "fc2"}  # what the huge neuron passes through, as output or as input
    assert {entry.tensor for entry in ranking.parts["encoder"][:3]} == hurt
    others = max(loss for tensor, loss in losses.items() if tensor not in hurt)
    assert min(losses[tensor] for tensor in hurt) > 2 * others


def test_without_the_outlier_the_same_groups_are_harmless(calibration, ranking):
    plain = {"encoder": planted.encoder(), "decoder": planted.decoder()}
    losses = {entry.tensor: entry.kl for entry in rank(plain, calibration, SETTINGS).parts["encoder"]}
    before = {entry.tensor: entry.kl for entry in ranking.parts["encoder"]}
    assert losses["gelu"] < before["gelu"] / 10


def test_splitting_the_outlier_makes_its_layer_harmless(models, calibration, ranking):
    split = {
        "encoder": apply_rewrites(models["encoder"], [{"move": "split", "add": "res2", "neurons": [planted.HUGE]}])
    }
    after = rank(split | {"decoder": models["decoder"]}, calibration, SETTINGS)
    before = {entry.tensor: entry.kl for entry in ranking.parts["encoder"]}
    losses = {entry.tensor: entry.kl for entry in after.parts["encoder"]}
    assert losses["gelu"] < before["gelu"] / 10
    worst = after.parts["encoder"][0].tensor
    assert worst.startswith("res2.outlier"), f"the branch should now be the most sensitive, not {worst}"


def test_single_losses_add_up(models, calibration, ranking):
    plain = {"encoder": planted.encoder(), "decoder": planted.decoder()}
    found = rank(plain, calibration, SETTINGS)
    chain = Chain(open_sessions(plain), calibration, 4, 3)
    groups = quantizable_groups(plain["encoder"])
    ranges = collect_ranges(plain["encoder"], groups, calibration.samples("encoder"))
    whole = open_session(fake_quantize(plain["encoder"], groups, ranges))
    expected = sum(entry.kl for entry in found.parts["encoder"])
    assert 0.4 < chain.distance({"encoder": part_function(whole)}).kl / expected < 2.5


def test_the_float_chain_is_at_no_distance_from_itself(models, calibration):
    sessions = open_sessions(models)
    chain = Chain(sessions, calibration, 4, 3)
    far = chain.distance({part: part_function(session) for part, session in sessions.items()})
    assert (far.kl, far.agree, far.steps) == (0.0, 12, 12)


def test_everything_kept_float_is_the_float_graph(models):
    groups = fuse(models["encoder"])
    kept = fake_quantize(models["encoder"], groups, {}, float_layers=[group.tensor for group in groups])
    assert [n.op_type for n in kept.graph.node] == [n.op_type for n in models["encoder"].graph.node]


def test_rungs_are_nested_from_all_int8_to_all_float(ladder, models):
    assert not any(ladder[0].float16_layers.values())
    assert ladder[0].expected.int8_mac_share["total"] == 1
    assert ladder[-1].expected.int8_mac_share["total"] == 0
    for one, two in itertools.pairwise(ladder):
        assert all(set(one.float16_layers[part]) <= set(two.float16_layers[part]) for part in models)
        assert one.expected.kl >= two.expected.kl
        assert one.expected.size_bytes["encoder"] <= two.expected.size_bytes["encoder"]


def test_the_first_rungs_keep_what_was_planted(ladder):
    partial = next(rung for rung in ladder if sum(map(len, rung.float16_layers.values())) >= 3)
    assert {"gelu"} <= set(partial.float16_layers["encoder"])


def test_shares_are_counted_from_the_graphs(ranking, models):
    linear = sum(g.macs for g in fuse(models["encoder"]) if g.tensor != "mixed")
    total = sum(g.macs for g in fuse(models["encoder"]))
    parts = {
        "encoder": tuple(e.model_copy(update={"kl": float(e.tensor == "mixed")}) for e in ranking.parts["encoder"]),
        "decoder": tuple(e.model_copy(update={"kl": 0.0}) for e in ranking.parts["decoder"]),
    }
    share = rungs(ranking.model_copy(update={"parts": parts}), CALLS)[1].expected.int8_mac_share
    assert share["encoder"] == round(linear / total, 4)
    assert share[HEAD] == 1
    small = sum(g.macs for g in fuse(models["decoder"]) if g.kind != "head") * 10
    assert share["total"] == round((linear + small) / (total + small), 4)


def test_the_search_measures_few_rungs_and_reuses_them(ladder):
    losses = {rung.key(): 2.0**-number for number, rung in enumerate(ladder)}
    asked = []

    def measure(rung):
        asked.append(rung.key())
        return Measurement(kl=losses[rung.key()], agree=1, tokens=1, steps=1)

    for wanted in range(1, len(ladder)):
        budget = Budget(delta_wer=1, kl_per_percent=2.0**-wanted)
        asked.clear()
        found, result = search(ladder, measure, budget)
        assert found.key() == ladder[wanted].key()
        assert result.kl == budget.kl
        assert len(asked) == len(set(asked)) <= 3 + np.log2(len(ladder))
    known = {}
    search(ladder, measure, Budget(delta_wer=1, kl_per_percent=0.1), known)
    asked.clear()
    search(ladder, measure, Budget(delta_wer=1, kl_per_percent=0.1), known)
    assert asked == []


def test_words_and_new_loops_bound_a_plan_too(ladder):
    budget = Budget(delta_wer=0.5, kl_per_percent=1)
    good = Measurement(kl=0.1, agree=9, tokens=10, steps=10, delta_wer=0.4)
    assert budget.allows(good)
    assert not budget.allows(good.model_copy(update={"delta_wer": 0.6}))
    assert not budget.allows(good.model_copy(update={"new_bad": 1}))
    assert not budget.allows(good.model_copy(update={"kl": 0.6}))
    with pytest.raises(BadInput, match="search-delta-wer"):
        search(ladder, lambda rung: good.model_copy(update={"kl": 9.0}), budget)


def test_the_curve_says_which_points_are_dominated(ladder):
    measured = [(rung, Measurement(kl=1 / (n + 1), agree=1, tokens=1, steps=1)) for n, rung in enumerate(ladder)]
    points = pareto([*measured, (ladder[1], Measurement(kl=5, agree=0, tokens=1, steps=1))], ladder[-1])
    dominated = {point["kl"] for point in points if point["dominated"]}
    assert 5 in dominated
    assert 1 / len(ladder) not in dominated, "nothing loses less than the last rung"
    assert [point["kl"] for point in points if point["taken"]] == [1 / len(ladder)]


def test_one_of_two_rungs_with_equal_shares_is_taken(ladder):
    first = ladder[1]
    moved = dict(first.float16_layers)
    part = next(part for part, layers in moved.items() if layers)
    twin = first.model_copy(update={"float16_layers": {**moved, part: (*moved[part], "another")}})
    measured = [(rung, Measurement(kl=1, agree=1, tokens=1, steps=1)) for rung in (first, twin)]
    assert [point["taken"] for point in pareto(measured, twin)] == [False, True]


def test_a_plan_reads_back_as_it_was_written(ladder):
    written = ladder[1].model_dump_json(by_alias=True)
    assert '"float"' in written
    assert type(ladder[1]).model_validate_json(written) == ladder[1]


def test_importing_it_loads_no_onnx():
    loaded = "any(m in sys.modules for m in ('onnx', 'onnxruntime'))"
    code = f"import sys, nightjar.quantization.mixed_precision; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
