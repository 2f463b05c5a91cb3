"""Let one `cached` decoder run serve several clips: every step reads all weights, however many rows they multiply.

The head alone is 80 MB in tiny.en, so a step of one clip waits for memory. An NPU needs the fixed shapes that export
gives; onnxruntime does not, so the binary's graph takes any number of lanes (clips) and of cache rows.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from nightjar.errors import Broken
from nightjar.graphs.macs import FIXED
from nightjar.graphs.onnx_file import load_model, save_model
from nightjar.graphs.onnx_graph import add_constants, constant_values, infer_shapes, set_nodes, tensor_shapes

MOST_LANES = 16  # a clip and step of tiny.en takes 7.3 ms alone, 1.9 with 8 lanes, 1.4 with 16 (2 cores)
MEMORY_BYTES = 512 * 2**20  # for the cross-attention inputs of all lanes
PREFIX = "nightjar."  # of the metadata that free_lanes writes


def count_lanes(decoder: Mapping[str, Any]) -> int:
    """Return the number of lanes for a decoder of model.json: as many as MEMORY_BYTES hold, MOST_LANES at most."""
    across = [entry["shape"] for entry in decoder["inputs"] if entry["name"].startswith("cross_")]
    lane_bytes = 4 * sum(map(math.prod, across))
    return max(1, min(MOST_LANES, MEMORY_BYTES // lane_bytes)) if across else 1


def free_lanes(file: Path, lanes: int) -> None:
    """Rewrite a `cached` decoder in place so that axis 0 counts lanes and its caches have any number of rows.

    The file's metadata has its number of lanes and the shapes for one clip. A lane has the rows of one clip: one row of
    `token` and its like, its heads of the cross-attention inputs. Raises Broken for a Reshape without fixed shape.
    """
    model = load_model(file)
    graph = model.graph
    ends = (*graph.input, *graph.output)
    shapes = tensor_shapes(infer_shapes(model))
    single = json.dumps({value.name: shapes[value.name] for value in ends})
    helper.set_model_props(model, {f"{PREFIX}lanes": str(lanes), f"{PREFIX}shapes": single})
    constants = constant_values(graph)
    for node in (node for node in graph.node if node.op_type == "Reshape"):
        source = shapes.get(node.input[0])
        if source is None or node.input[1] not in constants:
            raise Broken(f"no shape for Reshape '{node.name}' of {file.name}; {FIXED}")
        name = f"{node.output[0]}.shape"
        add_constants(graph, {name: _free_axis_0(constants[node.input[1]], source)})
        node.input[1] = name
    for value in ends:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "heads" if value.name.startswith("cross_") else "lanes"
        if value.name.startswith("self_"):
            dims[1].dim_param = "rows"
        elif value.name == "mask":
            dims[3].dim_param = "rows_and_own"
    del graph.value_info[:]  # inferred for one lane
    read = {name for node in graph.node for name in node.input}
    set_nodes(graph, [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read])
    save_model(model, file)


def fix_single_lane(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a graph that `free_lanes` wrote its fixed shapes for one clip, in place; other graphs stay as they are."""
    shapes = json.loads(lane_metadata(model).get("shapes", "{}"))
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    return model


def lane_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Return `lanes` and `shapes` (JSON) of a graph that `free_lanes` wrote; empty for any other graph."""
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def _free_axis_0(wanted: np.ndarray, source: tuple[int, ...]) -> np.ndarray:
    """Return the shape of a Reshape with axis 0, so far one lane, open."""
    freed = wanted.astype(np.int64)
    if wanted[0] == 1 and source[0] == 1:
        freed[0] = 0  # as many as come in; another axis may be -1, the cache's rows
    elif -1 not in wanted:
        freed[0] = -1
    return freed
