"""Fuse attention into onnxruntime's own operator: its scores stay in the processor's cache instead of going to memory.

onnxruntime's optimiser and its transformers tool fuse the patterns of known exporters, not this one's; GELU, layer
norms and biases it fuses by itself. int8 graphs stay as they are: their nodes are counted and quantized one by one.
"""

import onnx
from onnx import helper

from nightjar.graphs.onnx_graph import Graph, attribute, set_nodes

DOMAIN = "com.microsoft"
HEADS = [0, 2, 1, 3]  # (1, n, heads, d_head) to (1, heads, n, d_head), and back
KEYS = [0, 2, 3, 1]  # to (1, heads, d_head, n)


def fuse_attention(model: onnx.ModelProto) -> int:
    """Put one MultiHeadAttention in place of each attention without a mask, and return how many there were.

    The result differs only by the order of sums. Shapes must be inferred already and go into the file, as nothing
    infers them across this operator.
    """
    graph, index = model.graph, Graph(model)
    removed: set[str] = set()
    fused: dict[str, onnx.NodeProto] = {}  # by output
    for softmax in index.nodes:
        if not (nodes := _attention(index, softmax)):
            continue
        removed.update(node.output[0] for node in nodes)
        splits, last = nodes[:3], nodes[-1]
        fused[last.output[0]] = helper.make_node(
            "MultiHeadAttention",
            [reshape.input[0] for reshape in splits],
            [last.output[0]],
            name=last.name,
            domain=DOMAIN,
            num_heads=_head_shape(index, splits[0])[0],
            scale=1.0,  # the graph has scaled its queries
        )
    kept = [node for node in graph.node if node.output[0] in fused or node.output[0] not in removed]
    set_nodes(graph, [fused.get(node.output[0], node) for node in kept])
    shapes = [value for value in graph.value_info if value.name in fused or value.name not in removed]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    if fused:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(fused)


def _attention(graph: Graph, softmax: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes of an attention without a mask, empty for any other node.

    They are Reshape and Transpose of query, key and value, (1, n, heads * d_head) each; the scores' product; softmax;
    the mixing product; the Transpose and Reshape that join the heads.
    """
    if softmax.op_type != "Softmax" or attribute(softmax, "axis", -1) not in (-1, 3):
        return []
    scores = _follow(graph, softmax.input[0], "MatMul", backwards=True)
    mixing = _follow(graph, softmax.output[0], "MatMul", "Transpose", "Reshape")
    if not scores or not mixing or mixing[0].input[0] != softmax.output[0]:
        return []
    factors = (*scores[0].input, mixing[0].input[1])
    splits = [_follow(graph, name, "Transpose", "Reshape", backwards=True) for name in factors]
    if not all(splits):
        return []
    transposes = (*(transpose for transpose, _ in splits), mixing[1])
    if [attribute(node, "perm", []) for node in transposes] != [HEADS, KEYS, HEADS, HEADS]:
        return []
    shapes = {_head_shape(graph, reshape) for _, reshape in splits}
    if len(shapes) != 1 or len(shapes.pop()) != 2:
        return []
    return [*(reshape for _, reshape in splits), *(transpose for transpose, _ in splits), *scores, softmax, *mixing]


def _follow(graph: Graph, name: str, *op_types: str, backwards: bool = False) -> list[onnx.NodeProto]:
    """Follow a tensor through nodes of these types, each the only reader of its input; backwards: by first inputs."""
    chain: list[onnx.NodeProto] = []
    for op_type in op_types:
        node = graph.producers.get(name) if backwards else graph.only_reader(name)
        if node is None or node.op_type != op_type or graph.only_reader(name) is None:
            return []
        chain.append(node)
        name = node.input[0] if backwards else node.output[0]
    return chain


def _head_shape(graph: Graph, reshape: onnx.NodeProto) -> tuple[int, ...]:
    """Return (heads, d_head) of the Reshape that splits them, empty where its shape is computed."""
    shape = reshape.input[1]
    return tuple(graph.constant(shape).tolist()[2:]) if graph.is_constant(shape) else ()
