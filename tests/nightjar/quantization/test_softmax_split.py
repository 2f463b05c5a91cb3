"""A split softmax computes the same in float, and keeps in int8 what the fused attention loses."""

import numpy as np
import pytest

from nightjar.errors import Broken
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.fake_quantize import fake_quantize
from nightjar.quantization.graph_rewrites import apply_rewrites, propose_rewrites
from nightjar.quantization.npu_traits import NpuTraits
from nightjar.quantization.part_chain import snr_decibels
from nightjar.quantization.ranges import collect_ranges
from tests.nightjar import planted

FRAMES, HEADS, WIDTH = 400, 2, 16
WITH_ATTENTION = NpuTraits(integer_attention=True)
FLOAT_KINDS = ("Softmax", "Clip", "Relu", "add")


def attention(queries: int = FRAMES):
    """q, k, v → softmax(q·k)·v, as an encoder's: FRAMES keys for every query."""
    w = planted.Writer(0)
    w.op("Softmax", [w.op("MatMul", ["q", "k"], "scores")], "weights", axis=-1)
    w.op("MatMul", ["weights", "v"], "mixed")
    shapes = {"q": (HEADS, queries, WIDTH), "k": (HEADS, WIDTH, FRAMES), "v": (HEADS, FRAMES, WIDTH)}
    return w.model(shapes, {"mixed": (HEADS, queries, WIDTH)})


def sample(seed: int, queries: int = FRAMES):
    """Queries that look mostly at one frame, and a little at all others: as speech does."""
    rng = np.random.default_rng(seed)
    k = rng.normal(0, 1, (HEADS, WIDTH, FRAMES))
    q = 0.35 * k.transpose(0, 2, 1)[:, :queries]
    v = rng.normal(1, 1, (HEADS, FRAMES, WIDTH))
    return {name: value.astype(np.float32) for name, value in (("q", q), ("k", k), ("v", v))}


SAMPLES = [sample(seed) for seed in range(3)]


def splits(model, samples=SAMPLES):
    return [m for m in propose_rewrites(model, samples, WITH_ATTENTION) if m["move"] == "split_softmax"]


def snr_in_int8(model, float_kinds=()):
    groups = quantizable_groups(model)
    ranges = collect_ranges(model, groups, SAMPLES)
    float_layers = {group.tensor for group in groups if group.kind in float_kinds}
    rounded = open_session(fake_quantize(model, groups, ranges, float_layers))
    wanted = open_session(model)
    pairs = [({"mixed": wanted.run(None, s)[0]}, {"mixed": rounded.run(None, s)[0]}) for s in SAMPLES]
    return snr_decibels(pairs)


def test_a_split_is_exact_in_float_and_multiplies_the_weights_twice():
    model = attention()
    (move,) = splits(model)
    changed = apply_rewrites(model, [move])
    for each in SAMPLES:
        wanted, got = (open_session(graph).run(None, each)[0] for graph in (model, changed))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert [node.op_type for node in changed.graph.node].count("MatMul") == 3


def test_int8_keeps_with_a_split_what_it_loses_without():
    model = attention()
    split = apply_rewrites(model, splits(model))
    assert snr_in_int8(split, FLOAT_KINDS) > snr_in_int8(model) + 10
    assert snr_in_int8(split) < snr_in_int8(model) + 6, "an int8 softmax is rounded before it is split"


def test_the_threshold_is_the_one_that_loses_least_on_the_samples():
    model = attention()
    (move,) = splits(model)
    snr = {
        threshold: snr_in_int8(apply_rewrites(model, [move | {"threshold": threshold}]), FLOAT_KINDS)
        for threshold in (move["threshold"], 4 * move["threshold"], move["threshold"] / 4)
    }
    assert max(snr, key=snr.__getitem__) == move["threshold"], snr


def test_a_step_of_a_decoder_is_not_split_and_neither_is_anything_without_the_trait():
    assert not splits(attention(queries=1), [sample(0, queries=1)])
    assert all(m["move"] != "split_softmax" for m in propose_rewrites(attention(), SAMPLES))


def test_values_are_scaled_before_the_attention_is_split():
    model = planted.encoder()
    samples = [{"x": np.random.default_rng(1).normal(0, 1, (1, planted.T, planted.D)).astype(np.float32)}]
    moves = propose_rewrites(model, samples, WITH_ATTENTION)
    assert [m["move"] for m in moves if m["move"] != "split"][-1] == "split_softmax"
    assert ("scale", "value") in {(m["move"], m.get("tensor")) for m in moves}
    wanted, got = (open_session(graph).run(None, samples[0])[0] for graph in (model, apply_rewrites(model, moves)))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_split_of_another_graph_is_refused():
    move = {"move": "split_softmax", "tensor": "elsewhere", "threshold": 0.01}
    with pytest.raises(Broken, match=r"no attention has the softmax 'elsewhere'.*--refresh rank"):
        apply_rewrites(attention(), [move])
    assert Graph(attention()).shape("weights") == (HEADS, FRAMES, FRAMES)
