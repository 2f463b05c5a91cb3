"""Fused attention: it is in the file, in what runs, and gives what the plain graph gives."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from models.whisper.export import export
from nightjar.graphs.onnx_graph import load_graph
from nightjar.graphs.onnx_session import open_session
from nightjar.plugins.recipe import Recipe
from targets.onnx import compile
from targets.onnx.attention_fusion import fuse_attention
from targets.onnx.audit import audit
from targets.onnx.options import Options

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("fused") / "graphs"
    export(random_checkpoint, Recipe(window_s=10, decoder="static", decoder_length=64), folder)
    return folder


def operators(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


def outputs(file: Path) -> list[np.ndarray]:
    session, rng = open_session(str(file)), np.random.default_rng(0)
    inputs = {
        entry.name: np.ones(entry.shape, np.int64)
        if entry.type == "tensor(int64)"
        else rng.standard_normal(entry.shape).astype(np.float32)
        for entry in session.get_inputs()
    }
    return session.run(None, inputs)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_fused_is_there_and_the_same(graphs: Path, tmp_path: Path, part: str) -> None:
    compile(graphs, None, Options(), tmp_path)
    plain, fused = graphs / f"{part}.onnx", tmp_path / f"{part}.onnx"
    # a decoder's own attention has a mask and stays as it is
    layers, left = operators(plain).count("Softmax") // (2 if part == "decoder" else 1), operators(fused)
    assert left.count("MultiHeadAttention") == layers > 1
    assert left.count("Softmax") == operators(plain).count("Softmax") - layers
    optimized = tmp_path / "optimized.onnx"
    open_session(fused, integer_kernels=True, optimized=optimized)
    assert operators(optimized).count("MultiHeadAttention") == layers
    for wanted, found in zip(outputs(plain), outputs(fused), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_the_same_bytes_twice_and_shapes_for_who_audits_it(graphs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        compile(graphs, None, Options(), tmp_path / name)
    assert (tmp_path / "one" / "encoder.onnx").read_bytes() == (tmp_path / "two" / "encoder.onnx").read_bytes()
    plain, fused = audit(graphs / "encoder.onnx"), audit(tmp_path / "one" / "encoder.onnx")
    assert fused["nodes_total"] < plain["nodes_total"]


def test_what_is_read_elsewhere_is_left_alone(graphs: Path) -> None:
    model = load_graph(graphs / "encoder.onnx")
    weights = next(node.output[0] for node in model.graph.node if node.op_type == "Softmax")
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == weights))
    everything = sum(node.op_type == "Softmax" for node in model.graph.node)
    assert fuse_attention(model) == everything - 1
    onnx.checker.check_model(model)
