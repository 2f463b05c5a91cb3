"""What an NPU's recipe changes in the graphs: their tensors, and nothing that a precision is chosen by."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.whisper import decode
from models.whisper.contract import recognise
from models.whisper.export import export
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session
from nightjar.plugins.recipe import Recipe
from nightjar.quantization.calibration_set import Tensors
from nightjar.quantization.graph_rewrites import apply_rewrites, propose_rewrites
from nightjar.quantization.part_chain import logit_outputs
from targets.onnx.adopt import describe

NPU: dict[str, Any] = {"conv2d": True, "layer_norm": "primitives", "host_embedding": True}
PREFIX: dict[str, Any] = {"decoder": "static", "decoder_length": 32, "logits_rows": "all", "logits_slices": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> dict[str, Path]:
    """The same random model plain, for an NPU's encoder, and for both of its parts."""
    recipes = {"plain": {}, "cached": NPU, "static": {**NPU, **PREFIX}}
    folder = tmp_path_factory.mktemp("surgery")
    for name, fields in recipes.items():
        export(random_checkpoint, Recipe(window_s=5, decoder_length=64).model_copy(update=fields), folder / name)
    return {name: folder / name for name in recipes}


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return found


def test_graphs_hold_no_op_that_the_recipe_took_out(made: dict[str, Path]) -> None:
    for part in ("encoder", "decoder"):
        model = onnx.load(made["static"] / f"{part}.onnx")
        ops = {node.op_type for node in model.graph.node}
        assert not ops & {"LayerNormalization", "Gather", "Shape", "Slice", "Unsqueeze", "Tile", "Where", "Cast"}
        kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
        assert all(tensor.dims[2] == 1 for tensor in kernels)
        assert len(kernels) == (2 if part == "encoder" else 0)
        assert all(len(value.type.tensor_type.shape.dim) <= 4 for value in Graph(model).model.graph.value_info)


def test_tensors_are_as_docs_say(made: dict[str, Path]) -> None:
    parts = read(made["static"])["parts"]
    assert parts["encoder"]["inputs"] == [{"name": "mel", "shape": [1, 80, 1, 500], "dtype": "float32"}]
    assert {e["name"]: e["shape"] for e in parts["decoder"]["inputs"]} == {
        "embedding": [1, 32, 32],
        "audio": [1, 250, 32],
    }
    slices = {e["name"]: e["shape"] for e in parts["decoder"]["outputs"]}
    assert slices == {f"logits_{i}": [1, 32, 12966] for i in range(4)}
    assert read(made["static"])["host_position_add"]
    assert not read(made["plain"])["host_position_add"]


def test_the_last_slice_takes_what_is_left_over(random_checkpoint: Path, tmp_path: Path) -> None:
    export(random_checkpoint, Recipe(**{**PREFIX, "window_s": 1, "logits_slices": 5}), tmp_path)
    widths = [entry["shape"][-1] for entry in read(tmp_path)["parts"]["decoder"]["outputs"]]
    assert widths == [10372] * 4 + [10376]
    assert sum(widths) == 51864


def test_files_made_elsewhere_are_recognised_with_the_recipe_they_are_of(made: dict[str, Path]) -> None:
    for folder in made.values():
        given = recognise({path: describe(path) for path in sorted(folder.glob("*.onnx"))})
        recipe = read(folder)["recipe"]
        assert given.recipe == {name: recipe[name] for name in given.recipe}
        assert {"window_s", "decoder", "conv2d", "decoder_length"} <= given.recipe.keys()


def test_a_norm_in_primitives_is_one_group_and_takes_the_same_rewrites(made: dict[str, Path]) -> None:
    plain, spelled = (onnx.load(made[name] / "encoder.onnx") for name in ("plain", "cached"))
    kinds = [[group.kind for group in fuse(model)] for model in (plain, spelled)]
    assert kinds[0] == kinds[1]
    mel = np.random.default_rng(3).normal(size=(1, 80, 500)).astype(np.float32)
    samples: list[list[Tensors]] = [[{"mel": mel}], [{"mel": mel[:, :, None]}]]
    moves = [propose_rewrites(model, sample) for model, sample in zip((plain, spelled), samples, strict=True)]
    assert [move["move"] for move in moves[0]] == [move["move"] for move in moves[1]]
    for one, other in zip(*moves, strict=True):
        np.testing.assert_allclose(one["factors"], other["factors"], rtol=1e-3)
    assert any(group.tensor == move["tensor"] for group in fuse(spelled) for move in moves[1] if group.kind == "norm")
    before, after = (
        open_session(each).run(None, samples[1][0])[0] for each in (spelled, apply_rewrites(spelled, moves[1]))
    )
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_every_slice_of_the_vocabulary_is_a_head(made: dict[str, Path]) -> None:
    model = onnx.load(made["static"] / "decoder.onnx")
    assert [group.kind for group in fuse(model)].count("head") == 4
    assert logit_outputs([value.name for value in model.graph.output]) == [f"logits_{i}" for i in range(4)]
    assert logit_outputs(["logits", "new_k_0"]) == ["logits"]


class Listening:
    """Take a decoder's inputs down and say eot."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.model, self.seen = model, list[np.ndarray]()

    def run(self, part: str, inputs: Tensors, constant: Tensors = {}, **into: Tensors) -> Tensors:  # noqa: B006
        self.seen.append(inputs["embedding"].copy())
        ends = np.cumsum([0] + [entry["shape"][-1] for entry in self.model["parts"]["decoder"]["outputs"]])
        logits = np.zeros((1, 32, ends[-1]), np.float32)
        logits[..., self.model["tokens"]["eot"]] = 1
        return {f"logits_{i}": logits[..., ends[i] : ends[i + 1]] for i in range(4)}


@pytest.mark.parametrize("on_the_host", [True, False])
def test_positions_are_added_once_wherever_the_manifest_says(made: dict[str, Path], on_the_host: bool) -> None:
    model = {**read(made["static"]), "host_position_add": on_the_host}
    tables = {path.stem: np.load(path) for path in made["static"].glob("*_embedding.npy")}
    runner = Listening(model)
    heard = decode.decode(runner, {"hidden": np.zeros((1, 250, 32), np.float32)}, model, "en", tables)
    assert not heard["capped"]
    prompt = decode.prompt_tokens(model)
    expected = tables["token_embedding"][prompt]
    if on_the_host:
        expected = expected + tables["positional_embedding"][: len(prompt)]
    np.testing.assert_allclose(runner.seen[0][0, : len(prompt)], expected, atol=1e-6)
