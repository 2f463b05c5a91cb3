"""Take ONNX files made elsewhere as this target's binary: nothing is compiled, at most tensors are renamed."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from nightjar.device.part_io import first_line
from nightjar.errors import BadInput, Broken
from nightjar.files import read_json
from nightjar.graphs.onnx_graph import rename_tensors, tensor_specs
from nightjar.graphs.onnx_session import open_session
from nightjar.graphs.prebuilt import FileInterface, PrebuiltPart, check_interface
from nightjar.graphs.tensor_spec import TensorSpec
from nightjar.plugins.target_build import Entry, write_binary
from targets.onnx.audit import audit
from targets.onnx.batched_decoder import fix_single_lane, lane_metadata
from targets.onnx.options import NAME

ADVICE = "give the .onnx files of the parts"


def describe(file: Path) -> FileInterface:
    """Read names, shapes and dtypes of a graph's inputs and outputs.

    Raises BadInput for a file that is not an ONNX graph, has its weights in other files, or has open dimensions.
    """
    if not file.is_file():
        raise BadInput(f"no file {file}: {ADVICE}")
    try:
        model = fix_single_lane(onnx.load(file, format="protobuf", load_external_data=False))
    except Exception as exc:  # protobuf's DecodeError, or whatever random bytes lead to
        raise BadInput(f"{file} is not an ONNX graph ({first_line(exc)}): {ADVICE}") from exc
    graph = model.graph
    if not graph.input or not graph.output:  # an empty file is an empty, and valid, message
        raise BadInput(f"{file} is not an ONNX graph (no inputs or outputs): {ADVICE}")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        raise BadInput(f"{file} keeps its weights in another file: save it as one, `onnx.save(onnx.load(F), G)`")
    weights = {tensor.name for tensor in graph.initializer}  # which old exporters list among the inputs
    inputs = tuple(_tensor(file, value) for value in graph.input if value.name not in weights)
    return FileInterface(inputs=inputs, outputs=tuple(_tensor(file, value) for value in graph.output))


def adopt(parts: Mapping[str, PrebuiltPart], graphs: Path, out: Path) -> None:
    """Write the binary of docs/files.md from given files; `graphs` is the same recipe's export, for model.json.

    Raises BadInput for a file whose tensors are not those of the export, or that onnxruntime cannot load.
    """
    model = read_json(graphs / "model.json")
    for name, prebuilt in parts.items():
        check_interface(prebuilt, name, model["parts"][name])
    entries: dict[str, Entry] = {}
    for name, part in model["parts"].items():
        prebuilt, file = parts[name], out / part["file"]
        if prebuilt.rename:
            onnx.save(rename_tensors(onnx.load(prebuilt.file, format="protobuf"), prebuilt.rename), file)
        else:
            shutil.copyfile(prebuilt.file, file)
        try:
            open_session(file, integer_kernels=True)
            entries[name] = {"file": part["file"], **audit(file)}
        except Broken as exc:  # the message for exported graphs
            raise BadInput(f"{prebuilt.file}: {exc}") from exc
        except Exception as exc:  # onnxruntime raises classes of its own, without a base
            raise BadInput(f"onnxruntime cannot load {prebuilt.file}: {first_line(exc)}; export it again") from exc
        if lanes := lane_metadata(onnx.load(file, load_external_data=False)).get("lanes"):
            entries[name]["lanes"] = int(lanes)
    write_binary(graphs, model, entries, out, target=NAME, precision="as given")


def _tensor(file: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    if any(not isinstance(dim, int) or dim < 1 for dim in dims) or not kind.elem_type:
        raise BadInput(
            f"{file}: {value.name} ({', '.join(map(str, dims))}) has no fixed shape, which NPUs need: "
            "export without dynamic axes"
        )
    return tensor_specs([value])[0]
