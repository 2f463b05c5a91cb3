"""What MediaTek's lint says of one planted operator, of a .tflite and of an ONNX graph; no SDK and no stand-in."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nightjar.plugins.lint import Finding
from targets.mtk import lint
from targets.mtk.tflite import Model, Op, Tensor


def of(op: str, shape: tuple[int, ...] = (1, 4, 8), dtype: str = "float32") -> list[Finding]:
    """Lint a .tflite of one operator in a block's attention."""
    name = "models.whisper.surgery.Encoder/models.whisper.surgery.EncoderBlock_2/torch.nn.Attention_attn;1"
    tensors = (Tensor("x", (1, 4, 8), "float32", None), Tensor(name, shape, dtype, None))
    return list(lint.of_tflite("encoder", Model((Op(op, (0,), (1,)),), tensors, (0,), (1,))))


@pytest.mark.parametrize("op", ["ADD", "BATCH_MATMUL", "SOFTMAX", "MTKEXT_LAYER_NORMALIZATION"])
def test_what_the_npu_has_is_no_finding(op: str) -> None:
    assert of(op) == []


@pytest.mark.parametrize(
    ("op", "why", "remedy"),
    [
        ("GATHER", "no GATHER on the NPU", "host embedding"),
        ("EMBEDDING_LOOKUP", "no GATHER on the NPU", "host embedding"),
        ("LESS", "no comparison", "masks as numbers"),
        ("LOGICAL_AND", "no comparison and no logical", "masks as numbers"),
        ("SELECT_V2", "no conditional selection", "finite mask"),
        ("TOPK_V2", "no sorting", "on the CPU"),
        ("LOG_SOFTMAX", "no logarithm", "on the CPU"),
        ("FLOOR", "no rounding", "on the CPU"),
        ("FILL", "does not create tensors", "fixed shapes"),
        ("CUMSUM", "no cumulative sum", "triangular matrix of ones"),
        ("LEAKY_RELU", "no LEAKY_RELU", "two RELUs"),
    ],
)
def test_what_it_lacks_is_refused_with_place_reason_and_remedy(op: str, why: str, remedy: str) -> None:
    (one,) = of(op)
    assert (one.level, one.op, one.place) == ("refuse", op, "block 2, attention")
    assert one.node == "Encoder/EncoderBlock_2/Attention_attn;1"
    assert why in one.why
    assert remedy in one.remedy


def test_five_dimensions_and_long_integers_are_refused() -> None:
    (deep,) = of("RESHAPE", (1, 1, 4, 2, 4))
    assert (deep.level, deep.op) == ("refuse", "RESHAPE")
    assert "5 dimensions (1, 1, 4, 2, 4); MDLA 5.3 takes 4" in deep.why
    (wide,) = of("ADD", dtype="int64")
    assert "64-bit integers" in wide.why


def test_what_nobody_knows_is_a_warning() -> None:
    (one,) = of("SIN")
    assert (one.level, one.op) == ("warn", "SIN")
    assert "execution plan" in one.remedy


def test_an_onnx_graph_is_read_where_nothing_can_convert_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path / "none"))
    nodes = [
        helper.make_node("Reshape", ["x", "deep"], ["d"], name="/blocks.0/attn/Reshape"),
        helper.make_node("Reshape", ["d", "flat"], ["f"], name="/blocks.0/attn/Reshape_1"),
        helper.make_node("Less", ["f", "zero"], ["less"], name="/blocks.0/attn/Less"),
        helper.make_node("Where", ["less", "zero", "f"], ["y"], name="/blocks.0/attn/Where"),
    ]
    constants = {"deep": np.array([1, 1, 4, 2, 4]), "flat": np.array([1, 4, 8]), "zero": np.zeros(1, np.float32)}
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "encoder.onnx")
    described = {"x": [1, 4, 8], "y": [1, 4, 8]}
    tensors = [{"name": name, "shape": shape, "dtype": "float32"} for name, shape in described.items()]
    part = {"file": "encoder.onnx", "inputs": tensors[:1], "outputs": tensors[1:]}
    model = {"recipe": {"graph_format": "onnx"}, "parts": {"encoder": part}}
    (tmp_path / "model.json").write_text(json.dumps(model))
    found = {(each.op, each.node): each.why for each in lint.lint(tmp_path)}
    assert found.keys() == {
        ("Reshape", "/blocks.0/attn/Reshape"),
        ("Less", "/blocks.0/attn/Less"),
        ("Where", "/blocks.0/attn/Where"),
    }
    assert "5 dimensions" in found["Reshape", "/blocks.0/attn/Reshape"]
