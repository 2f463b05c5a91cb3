"""ONNX graphs as files: protobuf writes no message of 2 GiB or more, so the weights of a larger graph lie in FILE.data.

In memory such a graph has no weights: its tensors name their place in that file, and `tensor_values` maps them. Shapes
are inferred, and nodes replaced, as in any other graph. onnx is imported when used.
"""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 2**31 - 2**20  # of weights in one file; the rest is for the nodes
INLINE_BYTES = 1024  # smaller tensors stay in the graph: shape inference reads some


def graph_files(graph: Path) -> list[Path]:
    """List a graph's files: itself, and its weights where they lie beside it."""
    return [graph, *graph.parent.glob(f"{graph.name}.data")]


def copy_graph(graph: Path, folder: Path) -> None:
    """Copy a graph and its weights into a folder; they keep their names, which tie them together."""
    for path in graph_files(graph):
        shutil.copyfile(path, folder / path.name)


def load_model(file: Path) -> Any:
    """Load a graph; weights beside it stay there."""
    import onnx

    model = onnx.load(file, format="protobuf", load_external_data=False)
    for tensor in external_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(file.parent.absolute() / entry.value)
    return model


def save_model(model: Any, file: Path) -> None:
    """Save a graph, its weights beside it where one file cannot hold them; the graph may come from this file."""
    import onnx
    from onnx import StringStringEntryProto, TensorProto, numpy_helper

    if is_large(model):
        model, data = deepcopy(model), file.with_name(f"{file.name}.data")
        written = data.with_suffix(".part")  # the weights may be read from the file that this replaces
        with written.open("wb") as stream:
            for tensor in model.graph.initializer:
                values = tensor_values(tensor)
                if values.nbytes < INLINE_BYTES:
                    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                    continue
                place = {"location": data.name, "offset": str(stream.tell()), "length": str(values.nbytes)}
                moved = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
                moved.data_location = TensorProto.EXTERNAL
                moved.external_data.extend(StringStringEntryProto(key=k, value=v) for k, v in place.items())
                tensor.CopyFrom(moved)
                stream.write(values.data)
        written.replace(data)
    onnx.save(model, file)


def settle(written: Path, file: Path) -> Any:
    """Move a graph that a library wrote, a large one in many files, to its place in a clean folder; return it."""
    model = load_model(written)
    if not is_large(model):
        written.rename(file)
        return model
    save_model(model, file)
    return load_model(file)


def is_large(model: Any) -> bool:
    """Return whether a graph keeps its weights, or has to keep them, beside it."""
    weights = (tensor_values(tensor).nbytes for tensor in model.graph.initializer)
    return bool(external_tensors(model)) or sum(weights) > MOST_BYTES


def external_tensors(model: Any) -> list[Any]:
    """List the tensors of a graph in memory whose values lie in a file."""
    return [tensor for tensor in model.graph.initializer if tensor.external_data]


def tensor_values(tensor: Any) -> np.ndarray:
    """Return a tensor's values, mapped where they lie in a file."""
    from onnx import helper, numpy_helper

    if not tensor.external_data:
        return np.asarray(numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.asarray(np.memmap(place["location"], dtype, "r", int(place.get("offset", 0)), tuple(tensor.dims)))
