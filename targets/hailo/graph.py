"""Prepare a part's graph for the DFC's parser: its start and end nodes, and the patterns that the parser knows.

Moves at the end of a graph are left to the host. Operators that the parser does not know may only compute constants.
"""

from typing import Any, NamedTuple

import numpy as np

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import fuse
from nightjar.graphs.nhwc import LayoutStep
from nightjar.graphs.onnx_graph import DATA_MOVEMENT, Graph, add_constants, infer_shapes, set_nodes

# The parser of DFC 3.x refuses these on activations: Unsupported…LayerError.
UNSUPPORTED = frozenset(
    {
        *("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Tile", "TopK", "Where", "Range"),
        *("NonZero", "OneHot", "CumSum", "Trilu", "Einsum", "Loop", "If", "Scan", "LSTM", "GRU", "Cast", "Shape"),
        *("ConstantOfShape", "Greater", "Less", "Equal", "And", "Or", "Not", "ArgMax", "Log", "Sin", "Cos"),
    }
)


class OutputEnd(NamedTuple):
    """One output of a part: the node where the network ends, the shape there, and the moves left to the host."""

    name: str
    node: str
    shape: tuple[int, ...]
    moves: list[LayoutStep]


class Cut(NamedTuple):
    """The start of a part, by the names of its inputs, and its ends, in the order of its outputs."""

    starts: list[str]
    ends: list[OutputEnd]


def find_cut(part: str, graph: Graph) -> Cut:
    """Return the start and end nodes; raises BadOptions for a graph with an operator that the parser refuses."""
    refused = [node for node in graph.nodes if node.op_type in UNSUPPORTED and graph.activations(node)]
    if refused:
        node = refused[0]
        raise BadOptions(
            f"the DFC's parser does not support {node.op_type}, and the {part} has one at '{node.name}': export it "
            "with this target's own recipe; `nightjar lint --target hailo` lists every one"
        )
    ends = [_output_end(graph, name) for name in graph.outputs]
    for end in ends:
        if end.node == "":
            raise BadOptions(
                f"the {part} outputs {end.name} without computing anything: leave it out of --target-options npu="
            )
    return Cut(list(graph.inputs), ends)


def _output_end(graph: Graph, name: str) -> OutputEnd:
    """Walk back from an output over moves."""
    moves: list[LayoutStep] = []
    node = graph.producers.get(name)
    at = name
    while node is not None and node.op_type in DATA_MOVEMENT:
        if node.op_type == "Transpose":
            moves.insert(0, ["transpose", list(node.attribute[0].ints)])
        else:  # any other move is a new shape
            moves.insert(0, ["reshape", list(graph.shape(at))])
        at = node.input[0]
        node = graph.producers.get(at)
    return OutputEnd(name, node.name if node is not None else "", graph.shape(at), moves)


def prepare_graph(model: Any, value_by_one: bool) -> Any:
    """Return a part's graph with inferred shapes, named nodes and, with value_by_one, values multiplied by 1."""
    from onnx import helper

    out = Graph(model).model
    if not value_by_one:
        return out
    products = {group.nodes[-1] for group in fuse(out) if group.kind == "attention"}
    one, nodes = "nightjar.one", []
    for node in out.graph.node:
        if node.name in products:
            value = node.input[1]
            scaled = f"{value}.by_one"
            nodes.append(helper.make_node("Mul", [value, one], [scaled], name=f"{node.name}/value_by_one"))
            node.input[1] = scaled
        nodes.append(node)
    set_nodes(out.graph, nodes)
    add_constants(out.graph, {one: np.array(1, np.float32)} if products else {})
    return infer_shapes(out)
