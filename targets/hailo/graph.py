"""A part's graph as the DFC's parser takes it: where it is cut, and in patterns that it knows.

The parser is given node names to begin and to end at. They are found here, in whatever graph comes: what only moves
values at the end is the host's, and what the parser does not know may only stand before the first product.
"""

from typing import Any, NamedTuple

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import fuse
from nightjar.graphs.nhwc import LayoutStep
from nightjar.graphs.onnx_graph import DATA_MOVEMENT, Graph

# No layer of the DFC 3.x has these of an activation: its parser says Unsupported…LayerError.
UNKNOWN = frozenset(
    {
        *("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Tile", "TopK", "Where", "Range"),
        *("NonZero", "OneHot", "CumSum", "Trilu", "Einsum", "Loop", "If", "Scan", "LSTM", "GRU", "Cast", "Shape"),
        *("ConstantOfShape", "Greater", "Less", "Equal", "And", "Or", "Not", "ArgMax", "Log", "Sin", "Cos"),
    }
)


class Ending(NamedTuple):
    """One output of a part: the node it ends at, the shape it has there, and what the host does to it."""

    name: str
    node: str
    shape: tuple[int, ...]
    moves: list[LayoutStep]


class Cut(NamedTuple):
    """Where a part begins, by the names of its inputs, and where it ends, in the order of its outputs."""

    starts: list[str]
    endings: list[Ending]


def cut(part: str, graph: Graph) -> Cut:
    """Find where the parser is to begin and to end.

    Raises BadOptions for a graph with a node between the two that it does not know.
    """
    refused = [node for node in graph.nodes if node.op_type in UNKNOWN and graph.activations(node)]
    if refused:
        node = refused[0]
        raise BadOptions(
            f"the DFC's parser knows no {node.op_type}, and the {part} has one at '{node.name}': export it with this "
            "target's own recipe; `nightjar lint --target hailo` lists all"
        )
    endings = [_ending(graph, name) for name in graph.outputs]
    for ending in endings:
        if ending.node == "":
            raise BadOptions(
                f"the {part} puts out {ending.name} without computing anything: leave it out of --target-options npu="
            )
    return Cut(list(graph.inputs), endings)


def _ending(graph: Graph, name: str) -> Ending:
    """Walk back from an output over what only moves values."""
    moves: list[LayoutStep] = []
    node = graph.producers.get(name)
    at = name
    while node is not None and node.op_type in DATA_MOVEMENT:
        if node.op_type == "Transpose":
            moves.insert(0, ["transpose", list(node.attribute[0].ints)])
        else:  # a new shape, however it is said
            moves.insert(0, ["reshape", list(graph.shape(at))])
        at = node.input[0]
        node = graph.producers.get(at)
    return Ending(name, node.name if node is not None else "", graph.shape(at), moves)


def prepared(model: Any, value_by_one: bool) -> Any:
    """Return a part's graph with every shape inferred, every node named, and attention as the parser takes it."""
    import onnx
    from onnx import helper, numpy_helper

    graph = Graph(model)
    out = onnx.ModelProto()
    out.CopyFrom(graph.model)
    if not value_by_one:
        return out
    products = {group.nodes[-1] for group in fuse(graph.model) if group.kind == "attention"}
    one, nodes = "nightjar.one", []
    for node in out.graph.node:
        if node.name in products:
            value = node.input[1]
            scaled = f"{value}.by_one"
            nodes.append(helper.make_node("Mul", [value, one], [scaled], name=f"{node.name}/value_by_one"))
            node.input[1] = scaled
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:]
    out.graph.node.extend(kept)
    if products:
        import numpy as np

        out.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), one))
    return onnx.shape_inference.infer_shapes(out, data_prop=True)
