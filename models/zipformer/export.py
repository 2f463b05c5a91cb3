"""Write a streaming transducer's graphs for one stream: encoder, decoder, joiner, and model.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.zipformer import FAMILY, surgery
from models.zipformer.checkpoint import NEXT, Checkpoint, load_checkpoint, states_of
from nightjar.errors import BadCheckpoint, BadOptions, Broken
from nightjar.graphs.onnx_graph import Editor
from nightjar.plugins.recipe import Recipe

LONGEST_S = 3600.0  # of a clip that is heard in one stream: a session holds a clip's features, a stream would not
CHUNKS = 4  # that a surgery is proven on
SAME = 1e-4  # of the largest value: sums in another order


def export(checkpoint: Path, recipe: Recipe, out: Path, clamp: bool = False) -> Recipe:
    """Write the graphs of docs/files.md into `out`, each held against the original; the same inputs, the same bytes.

    clamp is Whisper's: a stream has no window. Returns the recipe that was exported. Raises BadCheckpoint, BadOptions
    for a target that takes no ONNX, and Broken where a graph made fit does not compute what the original does.
    """
    import onnx

    if recipe.graph_format != "onnx":
        raise BadOptions(
            f"a streaming Zipformer comes as ONNX graphs, and this target takes {recipe.graph_format}: "
            "pass --target onnx or rknn"
        )
    model = load_checkpoint(checkpoint)
    recipe = recipe.model_copy(update={"window_s": LONGEST_S, "decoder": "transducer", "host_embedding": False})
    fixed = fit(model, recipe)
    prove(model, fixed)
    out.mkdir(parents=True, exist_ok=True)
    described = {}
    for part, graph in fixed.items():
        del graph.metadata_props[:]
        onnx.save(graph, out / f"{part}.onnx")
        described[part] = {"file": f"{part}.onnx", **describe(graph)}
    content = {
        "family": FAMILY,
        "metadata": dict(sorted(model.metadata.items())),
        "recipe": recipe.model_dump(include={"window_s", "graph_format", "decoder", "float_counts", "kernel_most"}),
        "chunk": {
            "frames": int(model.metadata["T"]),
            "shift": int(model.metadata["decode_chunk_len"]),
            "rows": described["encoder"]["outputs"][0]["shape"][1],
        },
        "states": [{"input": before, "output": after} for before, after in states_of(fixed["encoder"])],
        "context": int(model.metadata["context_size"]),
        "unknown": model.symbols.index("<unk>") if "<unk>" in model.symbols else -2,
        "symbols": model.symbols,
        "harvest": [described["encoder"]["outputs"][0]["name"]],
        "parts": described,
    }
    (out / "model.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return recipe


def fit(model: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """Make every part fit for one stream on an NPU."""
    import onnx

    graphs = {}
    for part, original in model.graphs.items():
        copy = onnx.ModelProto()
        copy.CopyFrom(original)
        editor = Editor(surgery.fix(copy))
        if part == "encoder":
            counts = counting(editor, states_of(original))
            surgery.bound_averages(editor, counts)
            surgery.multiply_sums(editor)
            surgery.shift_distances(editor)
            if recipe.float_counts:
                surgery.float_counts(editor, counts)
            if recipe.kernel_most:
                surgery.cut_kernels(editor, recipe.kernel_most)
            surgery.slice_look_ups(editor)
        editor.drop_unread()
        graphs[part] = editor.model
    return graphs


def counting(editor: Editor, states: list[tuple[str, str]]) -> dict[str, str]:
    """Return the states that count frames, input and output: those of whole numbers."""
    from onnx import TensorProto

    whole = {v.name for v in editor.model.graph.input if v.type.tensor_type.elem_type == TensorProto.INT64}
    return {before: after for before, after in states if before in whole}


def prove(model: Checkpoint, fixed: dict[str, Any]) -> None:
    """Hold the graphs made fit against the originals on a few chunks of noise, state by state.

    Raises Broken with the tensor that differs, BadCheckpoint with one of the originals' that is not finite.
    """
    rng = np.random.default_rng(0)
    states = states_of(model.graphs["encoder"])
    frames = int(model.metadata["T"])
    theirs, ours = (_open(graphs["encoder"]) for graphs in (model.graphs, fixed))
    kept = [_zeros(session, states) for session in (theirs, ours)]
    for chunk in range(CHUNKS):
        x = rng.normal(-6, 4, (1, frames, 80)).astype(np.float32)
        found = []
        for session, held in zip((theirs, ours), kept, strict=True):
            names = [value.name for value in session.get_outputs()]
            found.append(dict(zip(names, session.run(None, {"x": x, **held}), strict=True)))
        _same(f"encoder, chunk {chunk}", *found)
        kept = [
            {before: after[name].astype(held[before].dtype) for before, name in states}
            for held, after in zip(kept, found, strict=True)
        ]
    for part in ("decoder", "joiner"):
        sessions = [_open(graphs[part]) for graphs in (model.graphs, fixed)]
        given = {}
        for value in sessions[1].get_inputs():
            whole = value.type == "tensor(int64)"
            given[value.name] = (
                np.arange(-1, np.prod(value.shape) - 1).reshape(value.shape)
                if whole
                else rng.normal(size=value.shape).astype(np.float32)
            )
        outputs = [value.name for value in sessions[1].get_outputs()]
        _same(part, *(dict(zip(outputs, session.run(outputs, given), strict=True)) for session in sessions))


def describe(graph: Any) -> dict[str, Any]:
    """List name, shape and dtype of every input and output."""
    from onnx import helper

    def listed(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "shape": [dim.dim_value for dim in value.type.tensor_type.shape.dim],
                "dtype": helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            }
            for value in values
        ]

    return {"inputs": listed(graph.graph.input), "outputs": listed(graph.graph.output)}


def _open(graph: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


def _zeros(session: Any, states: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    inputs = {value.name: value for value in session.get_inputs()}
    kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    return {
        name: np.zeros([d if isinstance(d, int) else 1 for d in inputs[name].shape], kinds[inputs[name].type])
        for name, _ in states
    }


def _same(where: str, theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> None:
    for name, value in theirs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            what = "NaN" if np.isnan(value).any() else "infinity"
            raise BadCheckpoint(f"{where}: {name} holds {what}: the weights are spoilt; {NEXT}")
        far = float(np.abs(value.astype(np.float64) - ours[name].astype(np.float64)).max(initial=0.0))
        if far > SAME * max(1.0, float(np.abs(value).max(initial=0.0))):
            raise Broken(
                f"{where}: {name} of the graph made fit is {far:.2g} off the original: report the model; "
                "nothing was exported"
            )
