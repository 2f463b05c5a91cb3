"""Fuse attention into onnxruntime's own operator: its scores stay in the processor's cache instead of going to memory.

onnxruntime's optimiser and its transformers tool fuse the patterns of known exporters, not this one's; GELU, layer
norms and biases it fuses by itself. int8 graphs stay as they are: their nodes are counted and quantized one by one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import onnx
from onnx import helper

from nightjar.graphs.onnx_graph import Graph, attribute, set_nodes

DOMAIN = "com.microsoft"
HEADS = [0, 2, 1, 3]  # (1, n, heads, d_head) to (1, heads, n, d_head), and back
KEYS = [0, 2, 3, 1]  # to (1, heads, d_head, n)


class Attention(NamedTuple):
    """The nodes from three projections (1, n, heads * d_head) to the mixed rows, in graph order, and their inputs."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, str, str]
    heads: int


def fuse_attention(model: onnx.ModelProto) -> int:
    """Put one MultiHeadAttention in place of each attention without a mask, and return how many there were.

    The result differs only by the order of sums. Shapes must be inferred already and go into the file, as nothing
    infers them across this operator.
    """
    graph = model.graph
    found = list(_attentions(Graph(model)))
    removed = {node.output[0] for attention in found for node in attention.nodes}
    last = {attention.nodes[-1].output[0]: attention for attention in found}
    nodes = []
    for node in graph.node:
        output = node.output[0]
        if output in last:
            fused = helper.make_node(
                "MultiHeadAttention",
                last[output].inputs,
                [output],
                name=node.name,
                domain=DOMAIN,
                num_heads=last[output].heads,
                scale=1.0,  # the graph has scaled its queries
            )
            nodes.append(fused)
        elif output not in removed:
            nodes.append(node)
    set_nodes(graph, nodes)
    shapes = [value for value in graph.value_info if value.name in last or value.name not in removed]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    if found:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(found)


def _attentions(graph: Graph) -> Iterator[Attention]:
    """Find softmax(q @ k) @ v between the reshapes and transposes that split heads and join them."""

    def before(name: str, *op_types: str) -> list[onnx.NodeProto]:
        """Follow first inputs back through nodes of these types that nothing else reads, nearest last."""
        chain: list[onnx.NodeProto] = []
        for op_type in op_types:
            node = graph.producers.get(name)
            if node is None or node.op_type != op_type or graph.only_reader(name) is None:
                return []
            chain.insert(0, node)
            name = node.input[0]
        return chain

    def after(name: str, *op_types: str) -> list[onnx.NodeProto]:
        chain: list[onnx.NodeProto] = []
        for op_type in op_types:
            following = graph.only_reader(name)
            if following is None or following.op_type != op_type:
                return []
            chain.append(following)
            name = following.output[0]
        return chain

    for softmax in graph.nodes:
        scores = before(softmax.input[0], "MatMul") if softmax.op_type == "Softmax" else []
        mixing = after(softmax.output[0], "MatMul", "Transpose", "Reshape")
        if not scores or not mixing or mixing[0].input[0] != softmax.output[0]:
            continue
        splits = [before(name, "Transpose", "Reshape") for name in (*scores[0].input, mixing[0].input[1])]
        if attribute(softmax, "axis", -1) not in (-1, 3) or not all(splits):
            continue
        if [attribute(node, "perm", []) for node in (*(s[1] for s in splits), mixing[1])] != [
            HEADS,
            KEYS,
            HEADS,
            HEADS,
        ]:
            continue
        shapes = {_constant_shape(graph, split[0].input[1])[2:] for split in splits}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
            continue
        nodes = (*(node for split in splits for node in split), *scores, softmax, *mixing)
        q, k, v = (split[0].input[0] for split in splits)
        yield Attention(nodes, (q, k, v), int(shape[0]))


def _constant_shape(graph: Graph, name: str) -> tuple[int, ...]:
    """Return the shape that a Reshape is given, empty where it is computed."""
    return tuple(graph.constant(name).tolist()) if graph.is_constant(name) else ()
