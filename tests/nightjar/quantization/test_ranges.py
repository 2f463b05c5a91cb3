"""Int8 ranges: the ends of every sample, what most samples share, and nothing that a GELU silences."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nightjar.errors import BadInput
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization import ranges
from nightjar.quantization.ranges import choose_ranges, collect_extremes, collect_ranges, quantized_tensors
from tests.nightjar import planted


@pytest.fixture(scope="module")
def encoder():
    return planted.encoder()


@pytest.fixture(scope="module")
def samples(encoder, tmp_path_factory):
    models = {"encoder": encoder, "decoder": planted.decoder()}
    return list(planted.calibration(tmp_path_factory.mktemp("calibration"), models).samples("encoder"))


def test_the_extremes_are_those_of_the_tensors_themselves(encoder, samples):
    graph, groups = Graph(encoder), quantizable_groups(encoder)
    names = quantized_tensors(graph, groups)
    found = collect_extremes(graph, names, samples)
    shown = onnx.ModelProto()
    shown.CopyFrom(graph.model)
    inner = [name for name in names if name not in graph.inputs]
    del shown.graph.output[:]
    shown.graph.output.extend(graph.values[name] for name in inner)
    session = open_session(shown)
    for number, sample in enumerate(samples):
        values = dict(zip(inner, session.run(inner, sample), strict=True)) | sample
        for name in names:
            assert found[name][number] == pytest.approx((values[name].min(), values[name].max()), rel=1e-5, abs=1e-6)


def test_one_loud_sample_in_twenty_does_not_widen_a_large_tensors_range(encoder, monkeypatch):
    graph = Graph(encoder)
    name = graph.inputs[0]
    ends = {name: [(-1.0, 1.0)] * 19 + [(-50.0, 80.0)]}
    assert choose_ranges(graph, quantizable_groups(encoder), ends)[name] == (
        -50.0,
        80.0,
    )  # of so few elements each counts
    monkeypatch.setattr(ranges, "LARGE_TENSOR", 1)
    assert choose_ranges(graph, quantizable_groups(encoder), ends)[name] == (-1.0, 1.0)


def test_what_a_gelu_silences_is_cut_and_what_others_read_is_not(encoder, samples):
    groups = quantizable_groups(encoder)
    gelu = next(group for group in groups if group.kind == "gelu")
    loud = [{name: 100 * value for name, value in sample.items()} for sample in samples]
    wide = {n: e for n, e in collect_extremes(Graph(encoder), list(gelu.inputs), loud).items()}
    found = collect_ranges(encoder, groups, loud)
    for name in gelu.inputs:
        assert min(low for low, _ in wide[name]) < ranges.GELU_SILENCE  # there is something to cut
        assert found[name][0] == ranges.GELU_SILENCE
    others = [group for group in groups if group.kind == "add"]
    assert min(found[name][0] for group in others for name in group.inputs) < ranges.GELU_SILENCE


def test_a_sample_with_nan_is_named(encoder, samples):
    broken = {name: np.full_like(value, np.nan) for name, value in samples[0].items()}
    with pytest.raises(BadInput, match=r"tensor '.*' is NaN or infinite for a calibration sample"):
        collect_ranges(encoder, quantizable_groups(encoder), [broken])


def test_a_gelu_input_that_is_also_put_out_keeps_its_range():
    steps = [
        ("Mul", ["x", "two"], "pre"),
        ("Div", ["pre", "root"], "a"),
        ("Erf", ["a"], "b"),
        ("Add", ["b", "one"], "c"),
        ("Mul", ["pre", "c"], "d"),
        ("Mul", ["d", "half"], "post"),
    ]
    constants = {"two": 2.0, "root": 2**0.5, "one": 1.0, "half": 0.5}
    shape = (1, 8)
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [out], name=out) for op, inputs, out in steps],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("post", "pre")],
        [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = collect_ranges(model, quantizable_groups(model), [{"x": np.linspace(-8, 8, 8, dtype=np.float32)[None]}])
    assert found["pre"] == (-16.0, 16.0)
