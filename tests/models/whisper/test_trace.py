"""Modules built again from an ONNX graph's weights compute what the graph does, before and after a rewrite."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.whisper.export import export
from models.whisper.trace import Part, rebuild
from nightjar.errors import BadOptions
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session
from nightjar.graphs.parameter_map import read_parameter_map, read_parameters
from nightjar.plugins.recipe import Recipe
from nightjar.quantization.graph_rewrites import feed_forwards, rewrite_graphs, scalable_tensors


@pytest.fixture(scope="module")
def graphs(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs")
    export(random_checkpoint, Recipe(host_embedding=True), out, clamp=True)
    return out


def rebuilt(graphs: Path, part: str) -> tuple[Part, onnx.ModelProto]:
    model, graph = json.loads((graphs / "model.json").read_text()), onnx.load(graphs / f"{part}.onnx")
    return rebuild(model, part, read_parameters(graph, read_parameter_map(graphs).parts[part])), graph


def far(part: Part, graph: onnx.ModelProto) -> float:
    """How far a module's outputs are from the graph's on noise, against the loudest of them."""
    noise = torch.Generator().manual_seed(3)
    given = {name: torch.randn(t.shape, generator=noise) for name, t in part.inputs.items()}
    with torch.no_grad():
        found = part.module(*given.values())
    found = [found] if isinstance(found, torch.Tensor) else found
    wanted = open_session(graph).run(part.outputs, {name: t.numpy() for name, t in given.items()})
    return max(np.abs(a.numpy() - b).max() / np.abs(b).max() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("part", ["encoder", "cross", "decoder"])
def test_a_part_is_built_again_from_its_graph(graphs: Path, part: str) -> None:
    made, graph = rebuilt(graphs, part)
    assert list(made.inputs) == [value.name for value in graph.graph.input]
    assert far(made, graph) < 1e-5


def test_a_static_decoder_with_tokens_is_built_again(random_checkpoint: Path, tmp_path: Path) -> None:
    export(random_checkpoint, Recipe(decoder="static"), tmp_path, clamp=True)
    made, graph = rebuilt(tmp_path, "decoder")
    tokens = torch.arange(64)[None]
    given = {**made.inputs, "tokens": tokens, "audio": torch.ones_like(made.inputs["audio"])}
    with torch.no_grad():
        found = made.module(*given.values()).numpy()
    (wanted,) = open_session(graph).run(None, {name: t.numpy() for name, t in given.items()})
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_rewritten_graphs_give_rewritten_modules(graphs: Path, tmp_path: Path) -> None:
    graph = Graph(onnx.load(graphs / "encoder.onnx"))
    add = list(feed_forwards(graph, fuse(graph.model)))[-1]
    scaled = scalable_tensors(graph, fuse(graph.model))[0]
    factors = np.geomspace(0.5, 2, scaled.channels).tolist()
    moves = [
        {"move": "scale", "tensor": scaled.tensor, "factors": factors},
        {"move": "split", "add": add, "neurons": [3, 100]},
    ]
    rewrite_graphs(graphs, {"encoder": moves}, tmp_path / "new")
    before, _ = rebuilt(graphs, "encoder")
    after, graph_after = rebuilt(tmp_path / "new", "encoder")
    assert far(after, graph_after) < 1e-5
    assert far(after, onnx.load(graphs / "encoder.onnx")) < 1e-4, "a rewrite is exact in float"
    block = after.module.get_submodule("blocks.1")
    assert block.outlier[0].weight.shape == (2, 32)
    assert block.mlp[0].weight.shape == (126, 32)
    changed = [
        n
        for n, t in after.module.state_dict().items()
        if n in dict(before.module.state_dict())
        and t.shape == before.module.state_dict()[n].shape
        and not torch.equal(t, before.module.state_dict()[n])
    ]
    assert changed, "the scale reached no parameter"


def test_graphs_of_another_format_say_that_they_cannot(random_checkpoint: Path, tmp_path: Path) -> None:
    export(random_checkpoint, Recipe(graph_format="torchscript"), tmp_path, clamp=True)
    with pytest.raises(BadOptions, match=r"has no parameters\.json"):
        read_parameter_map(tmp_path)
