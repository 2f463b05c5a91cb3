"""Fuse attention into onnxruntime's own operator: its scores stay in the processor's cache instead of going to memory.

onnxruntime's optimiser and its transformers tool fuse the patterns of known exporters, not this one's; GELU, layer
norms and biases it fuses by itself. int8 graphs are left alone: their nodes are counted and quantized one by one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "com.microsoft"
HEADS = [0, 2, 1, 3]  # (1, n, heads, d_head) to (1, heads, n, d_head), and back
ACROSS = [0, 2, 3, 1]  # keys, to (1, heads, d_head, n)


class Attention(NamedTuple):
    """The nodes from three projections (1, n, heads * d_head) to the mixed rows, in graph order, and what they read."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, str, str]
    heads: int


def fuse_attention(model: onnx.ModelProto) -> int:
    """Put one MultiHeadAttention in place of each attention without a mask, and return how many there were.

    The result is the same but for the order of sums. Shapes must be inferred already: nothing infers them across this
    operator, so the file has to tell.
    """
    graph = model.graph
    found = list(_attentions(graph))
    gone = {node.output[0] for attention in found for node in attention.nodes}
    last = {attention.nodes[-1].output[0]: attention for attention in found}
    kept = []
    for node in graph.node:
        output = node.output[0]
        if output in last:
            fused = last[output]
            kept.append(
                helper.make_node(
                    "MultiHeadAttention",
                    fused.inputs,
                    [output],
                    name=fused.nodes[-1].name,
                    domain=DOMAIN,
                    num_heads=fused.heads,
                    scale=1.0,  # the graph has scaled its queries
                )
            )
        elif output not in gone:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    shapes = [value for value in graph.value_info if value.name in last or value.name not in gone]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    if found:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(found)


def _attentions(graph: onnx.GraphProto) -> Iterator[Attention]:
    """Find softmax(q @ k) @ v between the reshapes and transposes that split heads and join them."""
    made_by = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    outputs = {value.name for value in graph.output}

    def before(name: str, *op_types: str) -> list[onnx.NodeProto]:
        """Follow first inputs back through nodes of these types that nothing else reads, nearest last."""
        chain: list[onnx.NodeProto] = []
        for op_type in op_types:
            node = made_by.get(name)
            if node is None or node.op_type != op_type or len(readers[name]) != 1 or name in outputs:
                return []
            chain.insert(0, node)
            name = node.input[0]
        return chain

    def after(name: str, *op_types: str) -> list[onnx.NodeProto]:
        chain: list[onnx.NodeProto] = []
        for op_type in op_types:
            following = readers.get(name, [])
            if len(following) != 1 or following[0].op_type != op_type or name in outputs:
                return []
            chain.append(following[0])
            name = following[0].output[0]
        return chain

    for softmax in graph.node:
        scores = before(softmax.input[0], "MatMul") if softmax.op_type == "Softmax" else []
        mixing = after(softmax.output[0], "MatMul", "Transpose", "Reshape")
        if not scores or not mixing or _axis(softmax) not in (-1, 3) or mixing[0].input[0] != softmax.output[0]:
            continue
        splits = [before(name, "Transpose", "Reshape") for name in (*scores[0].input, mixing[0].input[1])]
        if not all(splits) or [_perm(s[1]) for s in splits] + [_perm(mixing[1])] != [HEADS, ACROSS, HEADS, HEADS]:
            continue
        shapes = {tuple(constants.get(split[0].input[1], np.zeros(0)).tolist())[2:] for split in splits}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
            continue
        nodes = (*(node for split in splits for node in split), *scores, softmax, *mixing)
        q, k, v = (split[0].input[0] for split in splits)
        yield Attention(nodes, (q, k, v), int(shape[0]))


def _perm(transpose: onnx.NodeProto) -> list[int]:
    return list(transpose.attribute[0].ints)


def _axis(softmax: onnx.NodeProto) -> int:
    return next((a.i for a in softmax.attribute if a.name == "axis"), -1)
