"""Graphs too large for one file: the same graph and values, wherever its weights lie."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from nightjar.graphs import onnx_file
from nightjar.graphs.onnx_graph import Graph, load_graph
from nightjar.graphs.onnx_session import open_session

WEIGHTS = {
    "wide": np.arange(32 * 64, dtype=np.float32).reshape(32, 64) / 1000,
    "narrow": np.arange(64 * 32, dtype=np.float32).reshape(64, 32) / -1000,
    "bias": np.arange(32, dtype=np.float32),  # small: stays in the graph
    "rows": np.array([1, 8, 32], np.int64),  # shape inference reads it
}


def model() -> onnx.ModelProto:
    steps = [
        ("MatMul", ["x", "wide"], "a"),
        ("MatMul", ["a", "narrow"], "b"),
        ("Add", ["b", "bias"], "c"),
        ("Reshape", ["c", "rows"], "y"),
    ]
    nodes = [helper.make_node(op, inputs, [output], name=output) for op, inputs, output in steps]
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [8, 32]), ("y", [1, 8, 32]))]
    initializers = [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def result(source: Path | onnx.ModelProto) -> np.ndarray:
    found: np.ndarray = open_session(source).run(None, {"x": np.ones((8, 32), np.float32)})[0]
    return found


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph as torch writes one over 2 GiB, a file for each weight however small, moved to its place."""
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 10_000)
    (tmp_path / "torch").mkdir()
    written, file = tmp_path / "torch" / "graph.onnx", tmp_path / "graph.onnx"
    onnx.save_model(model(), written, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    onnx_file.settle(written, file)
    return file


def test_a_graph_within_the_limit_is_one_file_with_the_library_s_own_bytes(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "library.onnx")
    wanted = (tmp_path / "library.onnx").read_bytes()
    onnx_file.settle(tmp_path / "library.onnx", tmp_path / "graph.onnx")
    onnx_file.save_model(model(), tmp_path / "saved.onnx")
    assert (tmp_path / "graph.onnx").read_bytes() == (tmp_path / "saved.onnx").read_bytes() == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"graph.onnx", "saved.onnx"}


def test_a_large_graph_is_two_files_and_computes_the_same(large: Path) -> None:
    graph, data = onnx_file.graph_files(large)
    assert data.name == "graph.onnx.data"
    assert data.stat().st_size == WEIGHTS["wide"].nbytes + WEIGHTS["narrow"].nbytes
    assert graph.stat().st_size < 2000
    np.testing.assert_array_equal(result(large), result(model()))
    np.testing.assert_array_equal(result(onnx_file.load_model(large)), result(model()))  # as a graph in memory
    onnx.checker.check_model(str(large))


def test_shapes_and_constants_of_a_large_graph_are_known_and_its_weights_are_not_in_memory(large: Path) -> None:
    loaded = load_graph(large)
    assert loaded.ByteSize() < 2000
    graph = Graph(loaded)
    assert graph.shape("a") == (8, 64)
    assert graph.shape("y") == (1, 8, 32)
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(graph.constant(name), values)


def test_a_large_graph_is_edited_in_its_own_file(large: Path) -> None:
    edited = onnx_file.load_model(large)
    first = edited.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(WEIGHTS["wide"] * 2, first.name))
    onnx_file.save_model(edited, large)
    np.testing.assert_array_equal(Graph(load_graph(large)).constant("wide"), WEIGHTS["wide"] * 2)
    np.testing.assert_array_equal(Graph(load_graph(large)).constant("narrow"), WEIGHTS["narrow"])
    assert {path.name for path in large.parent.glob("graph*")} == {"graph.onnx", "graph.onnx.data"}


def test_a_copy_takes_the_weights_along(large: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    onnx_file.copy_graph(large, tmp_path / "copy")
    wanted = result(large)
    for path in onnx_file.graph_files(large):
        path.unlink()
    np.testing.assert_array_equal(result(tmp_path / "copy" / "graph.onnx"), wanted)
