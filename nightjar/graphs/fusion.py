"""Group a graph's nodes as NPU compilers fuse them: a linear with its bias, GELU, norm, attention.

A precision is chosen per group. onnx is imported when used: the command line loads without it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nightjar.graphs.macs import MULTIPLYING, count_macs
from nightjar.graphs.onnx_graph import DATA_MOVEMENT, Graph

GELU_OPS = ("Erf", "Add", "Mul")  # after the Div
RMS_NORM_OPS = ("ReduceMean", "Add", "Pow", "Mul")  # after the squares: icefall's BasicNorm
LAYER_NORM_OPS = ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add")  # after the mean and its subtraction
HEAD_WIDENING = 8  # a last linear at least this many times wider than its input is a vocabulary head


@dataclass(frozen=True)
class Group:
    """Nodes that an NPU runs as one operation; `tensor` is its output.

    kind: linear, conv, head, attention, gelu, swish, norm, add, product (of two activations), or the ONNX op type of a
    single node.
    """

    tensor: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]  # activations, traced back through data movement, each once
    inner: tuple[str, ...] = ()  # tensors inside that int8 rounds too: attention's scores and weights
    weights: tuple[str, ...] = ()
    macs: int = 0


def fuse(model: Any) -> list[Group]:
    """Group a graph's nodes in graph order; constants and data movement belong to no group."""
    graph = Graph(model)
    groups: list[Group] = []
    taken: set[str] = set()
    for node in graph.nodes:
        if node.name in taken or node.op_type in ("Constant", *DATA_MOVEMENT) or not graph.activations(node):
            continue
        known = (_gelu, _swish, _norm, _root_mean_square, _attention, _product_sum, _linear)
        group = next(filter(None, (kind(graph, node) for kind in known)), None) or _single(graph, node)
        taken.update(group.nodes)
        groups.append(group)
    return groups


def quantizable_groups(model: Any) -> list[Group]:
    """List the groups whose output is a float tensor."""
    graph = Graph(model)
    return [group for group in fuse(model) if graph.is_float(group.tensor)]


def logit_outputs(names: Sequence[str]) -> list[str]:
    """Return the outputs that are logits: the first, or every slice of a split vocabulary."""
    slices = [name for name in names if re.fullmatch(r"logits_\d+", name)]
    return slices or list(names[:1])


def _follow(graph: Graph, node: Any, op_types: Sequence[str]) -> list[Any]:
    """Return a node and the nodes that read each other's output alone, where they have these types; else nothing."""
    chain = [node]
    for op_type in op_types:
        following = graph.only_reader(chain[-1].output[0])
        if following is None or following.op_type != op_type:
            return []
        chain.append(following)
    return chain


def _gelu(graph: Graph, node: Any) -> Group | None:
    """Match x/√2 → Erf → +1 → ·x → ·½, at its Div."""
    chain = _follow(graph, node, GELU_OPS) if node.op_type == "Div" else []
    if not chain:
        return None
    half = graph.only_reader(chain[-1].output[0])
    if half is not None and half.op_type == "Mul" and len(graph.activations(half)) == 1:
        chain.append(half)
    return _group(graph, "gelu", chain, [node.input[0]])


def _swish(graph: Graph, node: Any) -> Group | None:
    """Match x · sigmoid(x - 1), or the gate y · sigmoid(x), at the sigmoid or the subtraction before it."""
    chain = [node]
    if node.op_type == "Sub" and len(graph.activations(node)) == 1:
        following = graph.only_reader(node.output[0])
        chain += [following] if following is not None else []
    if chain[-1].op_type != "Sigmoid":
        return None
    product = graph.only_reader(chain[-1].output[0])
    if product is None or product.op_type != "Mul":
        return None
    others = [name for name in product.input if name != chain[-1].output[0]]
    return _group(graph, "swish", [*chain, product], [node.input[0], *others])


def _root_mean_square(graph: Graph, node: Any) -> Group | None:
    """Match x · (mean(x²) + eps)^-½, at the squares."""
    chain = _follow(graph, node, RMS_NORM_OPS) if node.op_type == "Pow" else []
    return _group(graph, "norm", chain, [node.input[0]]) if chain and node.input[0] in chain[-1].input else None


def _norm(graph: Graph, node: Any) -> Group | None:
    """Match a LayerNormalization in primitives, as before opset 17, at the mean that it subtracts."""
    source = node.input[0]
    centred = graph.only_reader(node.output[0]) if node.op_type == "ReduceMean" else None
    if centred is None or centred.op_type != "Sub" or list(centred.input) != [source, node.output[0]]:
        return None
    chain, at = [node, centred], centred
    for op in LAYER_NORM_OPS:
        readers = [reader for reader in graph.readers.get(at.output[0], []) if reader.op_type == op]
        if len(readers) != 1:
            return None
        at = readers[0]
        chain.append(at)
    weights = [n for each in chain[-2:] for n in each.input if graph.is_constant(n)]
    if len(weights) != 2 or chain[6].input[0] != centred.output[0]:
        return None
    return _group(graph, "norm", chain, [source], weights)


def _attention(graph: Graph, node: Any) -> Group | None:
    """Match q·k (· scale, + mask) → Softmax → ·v, at its first product."""
    if node.op_type != "MatMul" or len(graph.activations(node)) != 2:
        return None
    chain, inputs = [node], list(node.input)
    while chain[-1].op_type != "Softmax":
        following = graph.only_reader(chain[-1].output[0])
        if following is None or following.op_type not in ("Add", "Mul", "Div", "Softmax"):
            return None
        inputs += [n for n in graph.activations(following) if n != chain[-1].output[0]]
        chain.append(following)
    product = graph.only_reader(chain[-1].output[0])
    if product is None or product.op_type != "MatMul":
        return None
    inputs += [n for n in product.input if n != chain[-1].output[0]]
    inner = (chain[-2].output[0], chain[-1].output[0])
    return replace(_group(graph, "attention", [*chain, product], inputs), inner=inner)


def _product_sum(graph: Graph, node: Any) -> Group | None:
    """Match the second of two products of activations whose sum is all that reads them, and that sum.

    Compilers add the first where they multiply the second (nightjar/quantization/softmax_split.py).
    """
    both = [node] if node.op_type == "MatMul" and len(graph.activations(node)) == 2 else []
    following = graph.only_reader(node.output[0]) if both else None
    if following is None or following.op_type != "Add" or len(graph.activations(following)) != 2:
        return None
    other = next(name for name in following.input if name != node.output[0])
    first = graph.producers.get(other)
    if first is None or first.op_type != "MatMul" or len(graph.activations(first)) != 2:
        return None
    if graph.only_reader(other) is None or graph.nodes.index(first) > graph.nodes.index(node):
        return None
    return _group(graph, "product", [node, following], [*node.input, other])


def _linear(graph: Graph, node: Any) -> Group | None:
    """Match a product with a constant, then its bias and its scalar factor."""
    if node.op_type not in MULTIPLYING or not graph.is_constant(node.input[1]):
        return None
    chain = [node]
    for op in ("Add", "Mul"):
        following = graph.only_reader(chain[-1].output[0])
        if following is not None and following.op_type == op and len(graph.activations(following)) == 1:
            small = next(n for n in following.input if graph.is_constant(n))
            if (op == "Add" and len(graph.shape(small)) == 1) or math.prod(graph.shape(small)) == 1:
                chain.append(following)
    kind, out = "conv" if node.op_type == "Conv" else "linear", chain[-1].output[0]
    wide = kind == "linear" and graph.shape(out)[-1] >= HEAD_WIDENING * graph.shape(node.input[0])[-1]
    if wide and out in map(graph.root, logit_outputs(graph.outputs)):
        kind = "head"
    return _group(graph, kind, chain, [node.input[0]], [node.input[1]])


def _single(graph: Graph, node: Any) -> Group:
    kind = {"LayerNormalization": "norm", "Add": "add", "MatMul": "product"}.get(node.op_type, node.op_type)
    return _group(graph, kind, [node], graph.activations(node), node.input[1:] if kind == "norm" else ())


def _group(graph: Graph, kind: str, chain: Sequence[Any], inputs: Sequence[str], weights: Sequence[str] = ()) -> Group:
    roots = tuple(dict.fromkeys(graph.root(name) for name in inputs))
    macs = sum(count_macs(node, graph.shapes) for node in chain if node.op_type in MULTIPLYING)
    names = tuple(node.name for node in chain)
    return Group(chain[-1].output[0], kind, names, roots, weights=tuple(weights), macs=macs)
