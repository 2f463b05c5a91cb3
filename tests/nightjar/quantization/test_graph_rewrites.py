"""Rewrites leave the float result as it is."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nightjar.errors import Broken
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_graph import constant_values
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.graph_rewrites import apply_rewrites, outlier_neurons, propose_rewrites, rewrite_graphs
from nightjar.quantization.npu_traits import NpuTraits
from tests.nightjar import planted


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(0, 1, (1, planted.T, planted.D)).astype(np.float32)} for _ in range(4)]


def run(model, sample):
    return open_session(model).run(None, sample)[0]


def test_every_move_leaves_the_float_output_as_it_is(samples):
    model = planted.encoder(outlier=60)
    moves = propose_rewrites(model, samples)
    assert {(m["move"], m.get("tensor", m.get("add"))) for m in moves} == {
        ("scale", "ln1"),
        ("scale", "value"),
        ("scale", "ln2"),
        ("split", "res2"),
    }
    for chosen in ([move] for move in moves):
        np.testing.assert_allclose(
            run(apply_rewrites(model, chosen), samples[0]), run(model, samples[0]), rtol=1e-4, atol=1e-4
        )
    changed = apply_rewrites(model, moves)
    np.testing.assert_allclose(run(changed, samples[0]), run(model, samples[0]), rtol=1e-4, atol=1e-4)
    assert sum(g.macs for g in fuse(changed)) == sum(g.macs for g in fuse(model)), "moves cost no multiplications"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_split_gives_its_branch_the_share_of_the_bias_that_the_npu_needs(samples, share):
    model = planted.encoder(outlier=60)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc2.b")
    bias.CopyFrom(numpy_helper.from_array(np.linspace(-1, 1, planted.D, dtype=np.float32), bias.name))
    split = next(
        m for m in propose_rewrites(model, samples, NpuTraits(branch_bias_share=share)) if m["move"] == "split"
    )
    assert split["bias_share"] == share
    changed = apply_rewrites(model, [split])
    np.testing.assert_allclose(run(changed, samples[0]), run(model, samples[0]), rtol=1e-4, atol=1e-4)
    constants = constant_values(changed.graph)
    whole = constant_values(model.graph)["fc2.b"]
    np.testing.assert_allclose(constants["res2.outlier.b2"], share * whole, rtol=1e-6)
    np.testing.assert_allclose(constants["fc2.b"] + constants["res2.outlier.b2"], whole, rtol=1e-6)


def test_apply_does_not_touch_the_graph_it_is_given(samples):
    model = planted.encoder(outlier=60)
    before = model.SerializeToString()
    apply_rewrites(model, propose_rewrites(model, samples))
    assert model.SerializeToString() == before


def test_a_folder_of_graphs_is_rewritten_and_described_as_before(samples, tmp_path):
    model = planted.encoder(outlier=60)
    (tmp_path / "graphs").mkdir()
    onnx.save(model, tmp_path / "graphs" / "encoder.onnx")
    (tmp_path / "graphs" / "model.json").write_text(json.dumps({"parts": {"encoder": {"file": "encoder.onnx"}}}))
    rewrite_graphs(tmp_path / "graphs", {"encoder": propose_rewrites(model, samples)}, tmp_path / "out")
    assert (tmp_path / "out" / "model.json").read_bytes() == (tmp_path / "graphs" / "model.json").read_bytes()
    changed = onnx.load(tmp_path / "out" / "encoder.onnx")
    assert len(changed.graph.node) > len(model.graph.node)
    np.testing.assert_allclose(run(changed, samples[0]), run(model, samples[0]), rtol=1e-4, atol=1e-4)


def test_only_neurons_far_above_all_others_are_split():
    peaks = np.ones(400)
    assert outlier_neurons(peaks) == []
    peaks[[3, 9]] = 100, 60
    assert outlier_neurons(peaks) == [3, 9]
    assert outlier_neurons(np.linspace(1, 100, 400)) == [], "a wide but even spread has no outliers"


def test_a_neuron_that_is_ordinary_and_adds_much_is_split_too(samples):
    for model in (planted.encoder(outlier=60), planted.encoder(loud=60)):
        (split,) = (m for m in propose_rewrites(model, samples) if m["move"] == "split")
        assert split["neurons"] == [planted.HUGE]
    assert all(m["move"] != "split" for m in propose_rewrites(planted.encoder(), samples))


def test_a_scaled_tensor_has_evener_channels(samples):
    model = planted.encoder()
    factors = {m["tensor"]: np.array(m["factors"]) for m in propose_rewrites(model, samples) if m["move"] == "scale"}
    assert factors["ln1"].max() / factors["ln1"].min() > 1.5
    assert np.log(factors["ln1"]).mean() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "move",
    [
        {"move": "split", "add": "res1", "neurons": [1]},
        {"move": "scale", "tensor": "res2", "factors": [1.0] * planted.D},
        {"move": "scale", "tensor": "ln1", "factors": [1.0]},
        {"move": "turn"},
    ],
)
def test_a_move_that_does_not_fit_is_refused(move):
    with pytest.raises(Broken, match="refresh rank"):
        apply_rewrites(planted.encoder(), [move])


def heads(sizes: dict[str, int], transposed: bool = False):
    """x (1, 1, D) → a vocabulary head, or slices of one; every row has a common part, as a trained head's has."""
    w = planted.Writer(5)
    common = w.rng.normal(0, 1, planted.D)
    for name, size in sizes.items():
        rows = common + w.rng.normal(0, 0.2, (size, planted.D))
        if transposed:
            flat = w.op("Reshape", ["x", "row"], f"{name}.flat")
            w.op("Gemm", [flat, w.const(f"{name}.w", rows)], name, transB=1)
        else:
            w.linear("x", name, (planted.D, size), rows.T, w.rng.normal(3, 0.1, size))
    if transposed:
        w.weights.append(numpy_helper.from_array(np.array([1, planted.D], np.int64), "row"))
    shape = (1,) if transposed else (1, 1)
    return w.model({"x": (1, 1, planted.D)}, {name: (*shape, size) for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("sizes", "transposed"),
    [({"logits": 256}, False), ({"logits": 256}, True), ({"logits_0": 200, "logits_1": 160}, False)],
)
def test_centred_logits_give_the_same_probabilities_and_span_less(sizes, transposed):
    model = heads(sizes, transposed)
    samples = [{"x": np.random.default_rng(n).normal(0, 1, (1, 1, planted.D)).astype(np.float32)} for n in range(4)]
    moves = propose_rewrites(model, samples)
    assert moves == [{"move": "center_logits"}]
    outputs = [
        [np.concatenate([each.ravel() for each in open_session(graph).run(None, s)]) for s in samples]
        for graph in (model, apply_rewrites(model, moves))
    ]
    for before, after in zip(*outputs, strict=True):
        shift = before - after
        assert np.ptp(shift) < 1e-4, "one number for all tokens, of all slices"
        assert abs(after.mean()) < 1e-4
    assert np.ptp(outputs[1]) < np.ptp(outputs[0]) / 2


def test_a_head_that_is_also_the_token_table_is_left_alone():
    model = heads({"logits": 256})
    table = next(node for node in model.graph.node if node.op_type == "MatMul").input[1]
    model.graph.node.append(onnx.helper.make_node("Identity", [table], ["table"], name="look_up"))
    assert propose_rewrites(model, []) == []
    with pytest.raises(Broken, match="no vocabulary head has weights of its own"):
        apply_rewrites(model, [{"move": "center_logits"}])
