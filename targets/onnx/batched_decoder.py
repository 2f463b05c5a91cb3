"""Let one `cached` decoder run serve several clips: every step reads all weights, however many rows they multiply.

The head alone is 80 MB in tiny.en, so that a step of one clip waits for memory. An NPU wants the fixed shapes that
export gives; onnxruntime does not, so the binary's graph takes any number of lanes and of cache rows.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nightjar.errors import Broken
from nightjar.graphs.macs import FIXED
from nightjar.graphs.onnx_graph import tensor_shapes

MOST = 16  # a clip and step of tiny.en takes 7.3 ms alone, 1.9 with 8 lanes, 1.4 with 16 (2 cores)
MEMORY_BYTES = 512 * 2**20  # for what the lanes hold of their clips


def count_lanes(decoder: Mapping[str, Any]) -> int:
    """Say how many lanes a decoder described in model.json should have: as many as MEMORY_BYTES hold, at most 16."""
    across = [entry["shape"] for entry in decoder["inputs"] if entry["name"].startswith("cross_")]
    each = 4 * sum(map(math.prod, across))
    return max(1, min(MOST, MEMORY_BYTES // each)) if across else 1


def free_lanes(file: Path, lanes: int) -> None:
    """Rewrite a `cached` decoder in place so that axis 0 counts lanes and its caches have any number of rows.

    The file says how many lanes it is meant for, and the shapes for one clip. A clip has the rows it had alone: a
    lane's row of `token` and its like, its heads of the cross-attention inputs. Raises Broken for a Reshape whose
    lanes cannot be told.
    """
    model = onnx.load(file)
    ends = (*model.graph.input, *model.graph.output)
    alone = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in ends}
    helper.set_model_props(model, {"nightjar.lanes": str(lanes), "nightjar.shapes": json.dumps(alone)})
    shapes = tensor_shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    for node in model.graph.node:
        if node.op_type == "Reshape":
            source = shapes.get(node.input[0])
            if source is None or node.input[1] not in constants:
                raise Broken(f"no shape for Reshape '{node.name}' of {file.name}; {FIXED}")
            wanted = _free(constants[node.input[1]], source)
            name = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(wanted, name))
            node.input[1] = name
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "heads" if value.name.startswith("cross_") else "lanes"
        if value.name.startswith("self_"):
            dims[1].dim_param = "rows"
        elif value.name == "mask":
            dims[3].dim_param = "rows_and_own"
    del model.graph.value_info[:]  # inferred for one lane
    _drop_unread_constants(model.graph)
    onnx.save(model, file)


def _free(wanted: np.ndarray, source: tuple[int, ...]) -> np.ndarray:
    """Make the shape of a Reshape that leaves axis 0, one lane of it so far, open."""
    freed = wanted.astype(np.int64)
    if wanted[0] == 1 and source[0] == 1:
        freed[0] = 0  # as many as come in; another axis may be -1, the cache's rows
    elif -1 not in wanted:
        freed[0] = -1
    return freed


def _drop_unread_constants(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
