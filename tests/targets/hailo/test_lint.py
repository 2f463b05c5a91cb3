"""What the Hailo lint says of whole exports, and of one planted node at a time."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.whisper.export import export
from nightjar.errors import BadOptions
from nightjar.plugins.lint import Finding
from nightjar.plugins.recipe import Recipe
from targets.hailo.lint import lint

Value = tuple[str, Sequence[int]]


def found(findings: list[Finding], op: str, level: str = "refuse") -> list[Finding]:
    return [finding for finding in findings if finding.op == op and finding.level == level]


def planted(
    folder: Path,
    nodes: list[Any],
    inputs: Sequence[Value],
    output: Value,
    constants: dict[str, np.ndarray],
    **more: Any,
) -> list[Finding]:
    """Lint an encoder of these nodes; more: int64, names of inputs that are whole numbers."""
    whole = more.get("int64", ())
    values = [
        helper.make_tensor_value_info(n, TensorProto.INT64 if n in whole else TensorProto.FLOAT, s) for n, s in inputs
    ]
    end = helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, [end], stored), opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, folder / "encoder.onnx")
    part = {
        "file": "encoder.onnx",
        "inputs": [{"name": n, "shape": s, "dtype": "int64" if n in whole else "float32"} for n, s in inputs],
        "outputs": [{"name": output[0], "shape": output[1], "dtype": "float32"}],
    }
    said = {"recipe": {"graph_format": "onnx", "decoder": "static"}, "parts": {"encoder": part}}
    (folder / "model.json").write_text(json.dumps(said))
    return lint(folder)


def test_the_plain_export_is_refused_and_the_recipes_is_not(
    random_checkpoint: Path, static: Path, tmp_path: Path
) -> None:
    export(random_checkpoint, Recipe(window_s=3, decoder="static", decoder_length=32), tmp_path)
    plain = lint(tmp_path)
    assert {finding.place for finding in found(plain, "Conv")} == {"first convolution", "second convolution"}
    assert found(plain, "Gather")[0].place == "token table"
    assert "host embedding" in found(plain, "Gather")[0].remedy
    assert {finding.node for finding in found(plain, "input")} >= {"tokens"}
    assert "logits_slices" in found(plain, "MatMul")[0].remedy
    norms = found(plain, "LayerNormalization", "warn")
    assert "block 0, norm before attention" in {finding.place for finding in norms}
    assert "layer_norm primitives" in norms[0].remedy
    masks = found(plain, "Add", "warn")
    assert masks
    assert "-10000" in masks[0].why

    recipe = lint(static / "graphs")
    assert not any(finding.level == "refuse" for finding in recipe)
    assert {finding.op for finding in recipe} == {"attention", "window"}
    places = [finding.place for finding in found(recipe, "attention", "warn") if finding.part == "decoder"]
    assert places[:2] == ["block 0, attention", "block 0, cross-attention"]


def test_a_decoder_with_a_cache_is_the_cpus(random_checkpoint: Path, cached: Path, tmp_path: Path) -> None:
    recipe = lint(cached / "graphs")
    assert not any(finding.level == "refuse" for finding in recipe)
    assert "--decoder static --decoder-length 32" in found(recipe, "KV cache", "warn")[0].remedy
    export(random_checkpoint, Recipe(window_s=3, decoder="cached", decoder_length=64), tmp_path)
    plain = lint(tmp_path)
    assert {finding.part for finding in plain if finding.level == "refuse"} == {"encoder"}
    assert "the board's CPU runs this part" in found(plain, "Gather", "warn")[0].remedy


def test_other_graphs_than_onnx_are_none_of_its(random_checkpoint: Path, tmp_path: Path) -> None:
    export(random_checkpoint, Recipe(window_s=1, graph_format="torchscript", decoder="static"), tmp_path)
    with pytest.raises(BadOptions, match="these are TorchScript"):
        lint(tmp_path)


ROWS, TALL = [1, 4, 8], [1, 4, 1]
NUMBERS = np.array([0, 2], np.int64)
CASES: list[tuple[str, str, Any, list[Value], Value, dict[str, np.ndarray], str]] = [
    ("Gather", "refuse", {"axis": 1}, [("x", ROWS)], ("y", [1, 2, 8]), {"n": NUMBERS}, "does not support Gather"),
    ("Tile", "refuse", {}, [("x", ROWS)], ("y", [1, 8, 8]), {"n": np.array([1, 2, 1])}, "does not support Tile"),
    ("Sin", "refuse", {}, [("x", ROWS)], ("y", ROWS), {}, "does not support Sin"),
    (
        "Conv",
        "refuse",
        {},
        [("x", [1, 8, 9])],
        ("y", [1, 4, 7]),
        {"w": np.ones((4, 8, 3), np.float32)},
        "one dimension",
    ),
    ("Expand", "warn", {}, [("x", TALL)], ("y", ROWS), {"n": np.array(ROWS)}, "repeated at run time"),
    ("Erf", "warn", {}, [("x", ROWS)], ("y", ROWS), {}, "Erf is in neither list"),
    ("Selu", "warn", {}, [("x", ROWS)], ("y", ROWS), {}, "Selu is in neither list"),
    ("Mul", "warn", {}, [("x", ROWS), ("z", TALL)], ("y", ROWS), {}, r"\(1, 4, 8\) meets \(1, 4, 1\)"),
    ("Unsqueeze", "refuse", {}, [("x", [4, 8])], ("y", [1, 4, 8]), {"n": np.array([0])}, "two dimensions"),
    ("Reshape", "refuse", {}, [("x", ROWS)], ("y", [2, 4, 4]), {"n": np.array([2, 4, 4])}, "for a batch"),
    ("Reshape", "refuse", {}, [("x", ROWS)], ("y", [1, 1, 2, 2, 8]), {"n": np.array([1, 1, 2, 2, 8])}, "5 dimensions"),
]


@pytest.mark.parametrize(("op", "level", "how", "inputs", "output", "constants", "why"), CASES)
def test_a_planted_node_is_found(
    tmp_path: Path,
    op: str,
    level: str,
    how: dict[str, Any],
    inputs: list[Value],
    output: Value,
    constants: dict[str, np.ndarray],
    why: str,
) -> None:
    """Between two activations, so that no move stands at the graph's end, where it is the host's."""
    named = [name for name, _ in inputs] + list(constants)
    nodes = [
        helper.make_node("Relu", [inputs[0][0]], ["r"], name="first"),
        helper.make_node(op, ["r", *named[1:]], ["s"], name="/blocks.2/mlp/planted", **how),
        helper.make_node("Relu", ["s"], [output[0]], name="last"),
    ]
    findings = planted(tmp_path, nodes, inputs, output, constants)
    (one,) = [finding for finding in findings if finding.node == "/blocks.2/mlp/planted"]
    assert (one.op, one.level, one.place) == (op, level, "block 2, feed-forward")
    assert one.remedy
    assert re.search(why, one.why), one.why
    nodes[1] = helper.make_node("Relu", ["r"], ["s"], name="/blocks.2/mlp/planted")
    assert planted(tmp_path, nodes, inputs[:1], (output[0], inputs[0][1]), {}) == []


def test_a_move_at_the_end_is_the_hosts(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="first"),
        helper.make_node("Reshape", ["r", "n"], ["y"], name="moves"),
    ]
    shape = {"n": np.array([2, 2, 8])}
    assert planted(tmp_path, nodes, [("x", ROWS)], ("y", [2, 2, 8]), shape) == []


def test_inputs_of_whole_numbers_and_open_shapes_are_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["t"], ["f"], name="whole", to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["y"], name="sum"),
    ]
    findings = planted(tmp_path, nodes, [("t", ROWS), ("x", [1, 4, "n"])], ("y", ROWS), {}, int64=("t",))
    assert {finding.why.split(";")[0] for finding in found(findings, "input")} == {
        "64-bit integers",
        "a dimension is not fixed",
    }
    assert found(findings, "Cast")
    wide = [helper.make_node("Relu", ["x"], ["y"], name="r")]
    findings = planted(tmp_path, wide, [("x", [1, 1, 2, 2, 2])], ("y", [1, 1, 2, 2, 2]), {})
    assert "a tensor of 5 dimensions" in found(findings, "input")[0].why
