"""Given ONNX files: every recipe's parts are told by their tensors alone, and come through unchanged."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.whisper.contract import recognise
from models.whisper.export import export
from nightjar.errors import BadInput
from nightjar.graphs.onnx_graph import rename_tensors
from nightjar.graphs.onnx_session import open_session
from nightjar.plugins.recipe import Recipe
from targets.onnx.adopt import adopt, describe

RECIPES = [
    Recipe(window_s=2, decoder="static", decoder_length=16),
    Recipe(window_s=2, decoder="static", decoder_length=24, host_embedding=True),
    Recipe(window_s=2, decoder="window", host_embedding=True),
    Recipe(window_s=2, decoder="cached", decoder_length=32, host_embedding=True),
]


def vector(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3])


def small() -> onnx.ModelProto:
    """x → out by way of a tensor called hidden."""
    nodes = [helper.make_node("Add", ["x", "one"], ["hidden"]), helper.make_node("Mul", ["hidden", "x"], ["out"])]
    one = numpy_helper.from_array(np.ones((1, 3), np.float32), "one")
    graph = helper.make_graph(nodes, "small", [vector("x")], [vector("out")], [one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.decoder}-{'host' * r.host_embedding}")
def test_every_protocol_is_told_by_its_tensors(recipe: Recipe, random_checkpoint: Path, tmp_path: Path) -> None:
    graphs, out = tmp_path / "graphs", tmp_path / "out"
    out.mkdir()
    export(random_checkpoint, recipe, graphs)
    strange = {}
    for number, path in enumerate(sorted(graphs.glob("*.onnx"))):
        strange[tmp_path / f"{number}.onnx"] = path.name
        (tmp_path / f"{number}.onnx").write_bytes(path.read_bytes())
    given = recognise({path: describe(path) for path in strange})
    assert {part.file: f"{name}.onnx" for name, part in given.parts.items()} == strange
    assert recipe.model_copy(update=given.recipe) == recipe
    assert recipe.decoder == "window" or given.recipe["decoder_length"] == recipe.decoder_length
    adopt(given.parts, graphs, out)
    assert (out / "model.json").read_bytes() == (graphs / "model.json").read_bytes()
    for name in given.parts:
        assert (out / f"{name}.onnx").read_bytes() == (graphs / f"{name}.onnx").read_bytes()
    assert (out / "token_embedding.npy").is_file() == recipe.host_embedding
    described = json.loads((out / "binary.json").read_text())
    assert described["precision"] == "as given"
    assert described["parts"].keys() == given.parts.keys()


def test_a_new_name_that_is_taken_inside_stays_apart() -> None:
    before, after = small(), rename_tensors(small(), {"x": "mel", "out": "hidden"})
    onnx.checker.check_model(after)
    wave = np.arange(3, dtype=np.float32)[None]
    expected = open_session(before.SerializeToString()).run(["out"], {"x": wave})[0]
    np.testing.assert_array_equal(open_session(after.SerializeToString()).run(["hidden"], {"mel": wave})[0], expected)


def test_a_wrong_rank_is_named_with_what_is_expected(tmp_path: Path, random_checkpoint: Path) -> None:
    export(random_checkpoint, RECIPES[0], tmp_path)
    onnx.save(small(), tmp_path / "encoder.onnx")
    with pytest.raises(BadInput, match=r"x \(1, 3\) float32 is not understood, expected \(1, n_mels, n_frames\)"):
        recognise({path: describe(path) for path in tmp_path.glob("*.onnx")})


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "a.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(BadInput, match="keeps its weights in another file"):
        describe(tmp_path / "a.onnx")
