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
_UNSUPPORTED = """
And ArgMax Cast ConstantOfShape Cos CumSum Einsum Equal GRU Gather GatherElements GatherND Greater If LSTM Less Log Loop
NonZero Not OneHot Or Range Scan ScatterElements ScatterND Shape Sin Tile TopK Trilu Where
"""
UNSUPPORTED = frozenset(_UNSUPPORTED.split())


class OutputEnd(NamedTuple):
    """One output of a part: the node where the network ends, the shape there, and the moves left to the host."""

    name: str
    node: str
    shape: tuple[int, ...]
    moves: list[LayoutStep]
    move_nodes: list[str]


def find_cut(part: str, graph: Graph) -> list[OutputEnd]:
    """Return where the network ends, per output; raises BadOptions for an operator that the parser refuses."""
    for node in graph.nodes:
        if node.op_type in UNSUPPORTED and graph.activations(node):
            raise BadOptions(
                f"the DFC's parser does not support {node.op_type}, and the {part} has one at '{node.name}': export it "
                "with this target's own recipe; `nightjar lint --target hailo` lists every one"
            )
    return [_output_end(part, graph, name) for name in graph.outputs]


def _output_end(part: str, graph: Graph, name: str) -> OutputEnd:
    moves: list[LayoutStep] = []
    nodes: list[str] = []
    at = name
    while (node := graph.producers.get(at)) is not None and node.op_type in DATA_MOVEMENT:
        turns = node.op_type == "Transpose"  # any other move is a new shape
        moves.insert(0, ["transpose", list(node.attribute[0].ints)] if turns else ["reshape", list(graph.shape(at))])
        nodes.append(node.name)
        at = node.input[0]
    if node is None:
        raise BadOptions(f"the {part} outputs {name} without computing anything: leave it out of --target-options npu=")
    return OutputEnd(name, node.name, graph.shape(at), moves, nodes)


def prepare_graph(model: Any, value_by_one: bool) -> Any:
    """Return a part's graph with inferred shapes, named nodes and, with value_by_one, values multiplied by 1."""
    from onnx import helper

    out = Graph(model).model
    products = {group.nodes[-1] for group in fuse(out) if group.kind == "attention"} if value_by_one else set()
    if not products:
        return out
    one, nodes = "nightjar.one", []
    for node in out.graph.node:
        if node.name in products:
            value = node.input[1]
            node.input[1] = f"{value}.by_one"
            nodes.append(helper.make_node("Mul", [value, one], [node.input[1]], name=f"{node.name}/value_by_one"))
        nodes.append(node)
    set_nodes(out.graph, nodes)
    add_constants(out.graph, {one: np.array(1, np.float32)})
    return infer_shapes(out)
