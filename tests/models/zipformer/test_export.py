"""The exported graphs have fixed shapes, compute what the originals do, and go on doing so for hours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.zipformer.checkpoint import load_checkpoint, states_of
from models.zipformer.export import export
from models.zipformer.surgery import split_kernels
from nightjar.errors import BadCheckpoint, BadOptions
from nightjar.graphs.onnx_graph import Editor
from nightjar.plugins.recipe import Recipe
from targets import rknn
from targets.onnx import recipe
from tests.models.zipformer.conftest import NANO, Exported

CHUNKS = 30


def run_both(exported: Exported, chunks: Any, start: dict[str, int] | None = None) -> Any:
    """Yield the outputs of the original and of the exported encoder, each from its own states."""
    names = states_of(load_checkpoint(exported.checkpoint).graphs["encoder"])
    original = next(exported.checkpoint.glob("*encoder*.onnx"))
    sessions = [ort.InferenceSession(str(path)) for path in (original, exported.graphs / "encoder.onnx")]
    kept: list[dict[str, Any]] = []
    for session in sessions:
        kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        inputs = {value.name: value for value in session.get_inputs()}
        kept.append({})
        for name, _ in names:
            shape = [d if isinstance(d, int) else 1 for d in inputs[name].shape]
            kept[-1][name] = np.full(shape, (start or {}).get(name.rsplit("_", 1)[0], 0), kinds[inputs[name].type])
    for x in chunks:
        found = []
        for number, session in enumerate(sessions):
            outputs = [value.name for value in session.get_outputs()]
            found.append(dict(zip(outputs, session.run(None, {"x": x, **kept[number]}), strict=True)))
            kept[number] = {before: found[-1][after] for before, after in names}
        yield found


@pytest.mark.parametrize("which", ["nano", "second"])
def test_every_output_and_state_is_the_original_s(which: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(which)
    rng = np.random.default_rng(1)
    frames = exported.model["chunk"]["frames"]
    chunks = [rng.normal(-8, 4, (1, frames, 80)).astype(np.float32) for _ in range(CHUNKS)]
    for number, (theirs, ours) in enumerate(run_both(exported, chunks)):
        for name, value in theirs.items():
            scale = max(1.0, float(np.abs(value).max()))
            assert np.abs(value - ours[name]).max() <= 1e-3 * scale, f"chunk {number}: {name}"


@pytest.mark.parametrize("which", ["nano", "second"])
def test_shapes_are_fixed_and_names_stay(which: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(which)
    for part in ("encoder", "decoder", "joiner"):
        model = onnx.load(exported.graphs / f"{part}.onnx")
        onnx.checker.check_model(model)
        values = [*model.graph.input, *model.graph.output]
        assert all(dim.dim_value > 0 for value in values for dim in value.type.tensor_type.shape.dim)
        original = load_checkpoint(exported.checkpoint).graphs[part].graph
        assert [v.name for v in model.graph.input] == [v.name for v in original.input]
        assert [v.name for v in model.graph.output] == [v.name for v in original.output]
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        known = {v.name: v.type.tensor_type.shape for v in [*inferred.graph.value_info, *values]}
        made = [name for node in model.graph.node for name in node.output if name]
        assert all(dim.HasField("dim_value") for name in made for dim in known[name].dim)


def test_no_operator_is_left_that_the_npu_hands_to_the_cpu(nano: Exported) -> None:
    ops = {node.op_type for node in onnx.load(nano.graphs / "encoder.onnx").graph.node}
    assert not ops & {"CumSum", "Gather", "GatherElements", "Range", "Where", "Expand", "Shape", "Loop", "If", "Einsum"}
    before = {node.op_type for node in onnx.load(NANO / "encoder.onnx").graph.node}
    assert {"CumSum", "GatherElements"} <= before  # there was something to do


def test_the_pooling_stays_within_float16_whatever_has_been_heard(nano: Exported) -> None:
    """`avg * len` of the original leaves float16 within minutes; here no tensor follows the length."""
    model = onnx.shape_inference.infer_shapes(onnx.load(nano.graphs / "encoder.onnx"))
    made = {name for node in model.graph.node for name in node.output} - {v.name for v in model.graph.output}
    inside = [value for value in model.graph.value_info if value.name in made]
    floats = [value for value in inside if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    model.graph.output.extend(floats)
    session = ort.InferenceSession(model.SerializeToString())
    feed = {
        value.name: np.full(value.shape, 3_600 * 50 if "len" in value.name else 0.9, np.int64)
        if "int64" in value.type
        else np.full(value.shape, 0.9, np.float32)
        for value in session.get_inputs()
    }
    feed["x"] = np.random.default_rng(0).normal(-8, 4, feed["x"].shape).astype(np.float32)
    for value, found in zip(session.get_outputs(), session.run(None, feed), strict=True):
        if found.dtype != np.float32 or value.name.startswith("new_cached_len"):
            continue
        counts = found[np.isfinite(found)]
        if np.abs(counts).max(initial=0) > 60_000:
            assert _counts_alone(model, value.name), f"{value.name} reaches {np.abs(counts).max():.3g}"


def _counts_alone(model: Any, name: str) -> bool:
    """Say whether a tensor depends on counts of frames and on no data."""
    made_by = {out: node for node in model.graph.node for out in node.output}
    inputs = {value.name for value in model.graph.input}
    waiting, seen = [name], set[str]()
    while waiting:
        each = waiting.pop()
        if each in inputs and "len" not in each:
            return False
        if each in made_by and each not in seen:
            seen.add(each)
            waiting += made_by[each].input
    return True


def test_counts_may_be_floats(tmp_path: Path) -> None:
    export(NANO, recipe("zipformer").model_copy(update={"float_counts": True}), tmp_path)
    model = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert {entry["dtype"] for entry in model["parts"]["encoder"]["inputs"]} == {"float32"}
    assert model["recipe"]["float_counts"] is True


def test_the_same_folder_gives_the_same_bytes(nano: Exported, tmp_path: Path) -> None:
    export(NANO, recipe("zipformer"), tmp_path)
    for path in sorted(nano.graphs.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_target_of_other_graphs_is_refused() -> None:
    with pytest.raises(BadOptions, match="takes torchscript"):
        export(NANO, Recipe(graph_format="torchscript"), Path("nowhere"))


def test_weights_of_nan_are_refused_with_chunk_and_tensor(tmp_path: Path) -> None:
    for name in ("decoder.onnx", "joiner.onnx", "tokens.txt"):
        (tmp_path / name).write_bytes((NANO / name).read_bytes())
    model = onnx.load(NANO / "encoder.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[7] = np.nan
    weight.raw_data = values.tobytes()
    onnx.save(model, tmp_path / "encoder.onnx")
    with pytest.raises(BadCheckpoint, match=r"chunk 0: \w+ holds NaN"):
        export(tmp_path, recipe("zipformer"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pads", [(0, 0), (3, 2), (12, 0), (20, 20)])
def test_a_wide_kernel_becomes_the_sum_of_narrow_ones(pads: tuple[int, int]) -> None:
    """As the toolkit of the RK3588 cuts it, where the sums have no name and their ranges are nobody's."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(8, 1, 31)), "b": rng.normal(size=8)}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], group=8, kernel_shape=[31], pads=pads)],
        "wide",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 8, 46])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    editor = Editor(model)
    assert split_kernels(editor, 7) == 1
    editor.drop_unread()
    x = rng.normal(size=(1, 8, 46)).astype(np.float32)
    wanted, got = (ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (model, editor.model))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    shapes = {tensor.name: tensor.dims for tensor in editor.model.graph.initializer}
    kernels = [shapes[node.input[1]][2] for node in editor.model.graph.node if node.op_type == "Conv"]
    assert kernels == [7, 7, 7, 7, 3]


def test_the_npu_s_recipe_leaves_no_kernel_that_its_toolkit_would_cut(tmp_path: Path) -> None:
    export(NANO, rknn.recipe("zipformer"), tmp_path)  # which proves that it computes the same
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    assert max(shapes[node.input[1]][-1] for node in graph.node if node.op_type == "Conv") == 16
