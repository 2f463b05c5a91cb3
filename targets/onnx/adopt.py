"""Take ONNX files made elsewhere as this target's binary: nothing is compiled, at most a tensor is renamed."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from nightjar.errors import BadInput, Broken
from nightjar.graphs.prebuilt import FileInterface, PrebuiltPart, check_interface
from nightjar.graphs.tensor_spec import TensorSpec
from targets.onnx.audit import alone, audit, lanes_of
from targets.onnx.options import NAME
from targets.onnx.quantize import open_session


def describe(file: Path) -> FileInterface:
    """Read names, shapes and dtypes of a graph's inputs and outputs.

    Raises BadInput for a file that is no ONNX graph, keeps its weights in other files, or has open dimensions.
    """
    if not file.is_file():
        raise BadInput(f"no file {file}: give the .onnx files of the parts")
    try:
        model = alone(onnx.load(file, format="protobuf", load_external_data=False))
    except Exception as exc:  # protobuf's DecodeError, or whatever else random bytes lead to
        raise BadInput(f"{file} is no ONNX graph ({_first_line(exc)}): give the .onnx files of the parts") from exc
    graph = model.graph
    if not graph.input or not graph.output:  # an empty file is an empty, and valid, message
        raise BadInput(f"{file} is no ONNX graph (no inputs or outputs): give the .onnx files of the parts")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        raise BadInput(f"{file} keeps its weights in another file: save it as one, `onnx.save(onnx.load(F), G)`")
    weights = {tensor.name for tensor in graph.initializer}  # which old exporters list among the inputs
    inputs = tuple(_tensor(file, value) for value in graph.input if value.name not in weights)
    return FileInterface(inputs=inputs, outputs=tuple(_tensor(file, value) for value in graph.output))


def adopt(parts: Mapping[str, PrebuiltPart], graphs: Path, out: Path) -> None:
    """Write the binary of docs/files.md from given files; `graphs` is the same recipe's export, for model.json.

    Raises BadInput for a file whose tensors are not those of the export, or that onnxruntime cannot load.
    """
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    for name, given in parts.items():
        check_interface(given, name, model["parts"][name])
    entries = {}
    for name, part in model["parts"].items():
        given, file = parts[name], out / part["file"]
        if given.rename:
            onnx.save(renamed(onnx.load(given.file, format="protobuf"), given.rename), file)
        else:
            shutil.copyfile(given.file, file)
        entries[name] = {"runner": NAME, "file": part["file"], **_audited(given.file, file)}
        if lanes := lanes_of(onnx.load(file, load_external_data=False)).get("lanes"):
            entries[name]["lanes"] = int(lanes)
    for path in [graphs / "model.json", *sorted(graphs.glob("*embedding*"))]:
        shutil.copyfile(path, out / path.name)
    description = {"target": NAME, "precision": "as given", "parts": entries}
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Rename tensors everywhere in a graph; one inside that has a new name already makes room for it."""
    inside = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    moved = {new: f"{new}_inside" for new in names.values() if new in inside and new not in names}
    _rename(model.graph, {**names, **moved})
    return model


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, names)


def _tensor(file: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    if any(not isinstance(dim, int) or dim < 1 for dim in dims) or not kind.elem_type:
        raise BadInput(
            f"{file}: {value.name} ({', '.join(map(str, dims))}) has no fixed shape: NPUs take none but fixed ones, "
            "export without dynamic axes"
        )
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(name=value.name, shape=tuple(int(dim) for dim in dims), dtype=dtype)


def _audited(given: Path, file: Path) -> dict[str, Any]:
    try:
        open_session(str(file))
        return {**audit(file)}
    except Broken as exc:  # that was meant for graphs of our own
        raise BadInput(f"{given}: {exc}") from exc
    except Exception as exc:  # onnxruntime raises classes of its own, without a base
        raise BadInput(f"onnxruntime cannot load {given}: {_first_line(exc)}; export it again") from exc


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
