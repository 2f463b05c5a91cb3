"""Write a streaming transducer's graphs for one stream: encoder, decoder, joiner, and model.json."""

import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from models.zipformer import FAMILY, surgery
from models.zipformer.checkpoint import NEXT, Checkpoint, load_checkpoint, states_of
from nightjar.errors import BadCheckpoint, BadOptions, Broken
from nightjar.graphs.onnx_graph import Editor, tensor_specs
from nightjar.graphs.onnx_session import Tensors, open_session, part_function
from nightjar.plugins.recipe import Recipe

LONGEST_S = 3600.0  # of a clip in one stream: a session holds a clip's features
CHUNKS = 4  # that the surgery is proven on
TOLERANCE = 1e-4  # of the largest value: sums in another order


def export(checkpoint: Path, recipe: Recipe, out: Path, clamp: bool = False) -> Recipe:
    """Write the graphs of docs/files.md into `out`, each compared with the original; equal inputs give equal bytes.

    clamp is for Whisper: a stream has no window. Returns the recipe that was exported. Raises BadCheckpoint, BadOptions
    for a target that takes no ONNX, and Broken where an edited graph does not compute what the original does.
    """
    if recipe.graph_format != "onnx":
        raise BadOptions(
            f"a streaming Zipformer comes as ONNX graphs, and this target takes {recipe.graph_format}: "
            "pass --target onnx or rknn"
        )
    model = load_checkpoint(checkpoint)
    recipe = recipe.model_copy(update={"window_s": LONGEST_S, "decoder": "transducer", "host_embedding": False})
    edited = edit_graphs(model, recipe)
    prove(model, edited)
    out.mkdir(parents=True, exist_ok=True)
    described: dict[str, dict[str, Any]] = {}
    for part, graph in edited.items():
        del graph.metadata_props[:]
        onnx.save(graph, out / f"{part}.onnx")
        ends = {"inputs": graph.graph.input, "outputs": graph.graph.output}
        specs = {kind: [spec.model_dump() for spec in tensor_specs(values)] for kind, values in ends.items()}
        described[part] = {"file": f"{part}.onnx", **specs}
    content = {
        "family": FAMILY,
        "metadata": dict(sorted(model.metadata.items())),
        "recipe": recipe.model_dump(include={"window_s", "graph_format", "decoder", "float_counts", "kernel_most"}),
        "chunk": {
            "frames": int(model.metadata["T"]),
            "shift": int(model.metadata["decode_chunk_len"]),
            "rows": described["encoder"]["outputs"][0]["shape"][1],
        },
        "states": [{"input": before, "output": after} for before, after in states_of(edited["encoder"])],
        "context": int(model.metadata["context_size"]),
        "unknown": model.symbols.index("<unk>") if "<unk>" in model.symbols else -2,
        "symbols": model.symbols,
        "harvest": [described["encoder"]["outputs"][0]["name"]],
        "parts": described,
    }
    (out / "model.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return recipe


def edit_graphs(model: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """Return every part edited for one stream on an NPU."""
    graphs = {}
    for part, original in model.graphs.items():
        editor = Editor(surgery.fix_shapes(deepcopy(original)))
        if part == "encoder":
            counting = {v.name for v in original.graph.input if v.type.tensor_type.elem_type == TensorProto.INT64}
            counts = {before: after for before, after in states_of(original) if before in counting}  # of frames
            editor.replace("Mul", partial(surgery.bound_average, counts=counts))
            editor.replace("CumSum", surgery.multiply_sum)
            editor.replace("GatherElements", surgery.shift_distances)
            if recipe.float_counts:
                surgery.float_counts(editor, counts)
            if recipe.kernel_most:
                surgery.split_kernels(editor, recipe.kernel_most)
            editor.replace("Gather", surgery.slice_look_up)
        editor.drop_unread()
        graphs[part] = editor.model
    return graphs


def prove(model: Checkpoint, edited: dict[str, Any]) -> None:
    """Compare the edited graphs with the originals on a few chunks of noise, state by state.

    Raises Broken with the tensor that differs, BadCheckpoint with an original tensor that is not finite.
    """
    rng = np.random.default_rng(0)
    links = states_of(model.graphs["encoder"])
    specs = {part: tensor_specs(graph.graph.input) for part, graph in edited.items()}
    run = {
        part: [part_function(open_session(graphs[part], threads=1)) for graphs in (model.graphs, edited)]
        for part in edited
    }
    shapes = {spec.name: spec.shape for spec in specs["encoder"]}
    originals = tensor_specs(model.graphs["encoder"].graph.input)
    states = [{s.name: np.zeros(shapes[s.name], s.dtype) for s in each[1:]} for each in (originals, specs["encoder"])]
    for chunk in range(CHUNKS):
        x = rng.normal(-6, 4, shapes["x"]).astype(np.float32)
        results = [encode({"x": x, **state}) for encode, state in zip(run["encoder"], states, strict=True)]
        _require_same(f"encoder, chunk {chunk}", *results)
        states = [{before: outputs[after] for before, after in links} for outputs in results]
    for part in ("decoder", "joiner"):
        inputs = {}
        for spec in specs[part]:
            counting = np.arange(-1, np.prod(spec.shape) - 1).reshape(spec.shape)
            inputs[spec.name] = counting if spec.dtype == "int64" else rng.normal(size=spec.shape).astype(np.float32)
        _require_same(part, *(function(inputs) for function in run[part]))


def _require_same(where: str, originals: Tensors, edited: Tensors) -> None:
    for name, value in originals.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            what = "NaN" if np.isnan(value).any() else "infinity"
            raise BadCheckpoint(f"{where}: {name} holds {what}: the weights are damaged; {NEXT}")
        difference = float(np.abs(value.astype(np.float64) - edited[name].astype(np.float64)).max(initial=0.0))
        if difference > TOLERANCE * max(1.0, float(np.abs(value).max(initial=0.0))):
            raise Broken(
                f"{where}: {name} of the edited graph is {difference:.2g} off the original: report the model; "
                "nothing was exported"
            )
