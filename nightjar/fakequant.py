"""What int8 does to a graph, on the host: group its nodes as an NPU compiler fuses them, and round some groups.

A group in int8 reads rounded inputs and weights and puts out a rounded tensor; a float group reads what is there. That is
what rknn-toolkit2 2.5 makes of a hybrid model (docs/decisions/005-precision-search.md). onnx and onnxruntime are
imported when used: the command line loads without them.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nightjar.calibration import Spread, Tensors
from nightjar.errors import Broken

Ranges = Mapping[str, tuple[float, float]]

MOVES = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten")  # same values in another place
LINEAR = ("MatMul", "Gemm", "Conv")
GELU = ("Div", "Erf", "Add", "Mul")


@dataclass(frozen=True)
class Group:
    """Nodes that an NPU runs as one operation; `tensor` is what it puts out.

    kind: linear, conv, head, attention, gelu, norm, add, or the ONNX op type of a node that stands alone.
    """

    tensor: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]  # activations read, one name per value: moves are looked through
    inner: tuple[str, ...] = ()  # tensors inside that int8 rounds too: an attention's scores and weights
    weights: tuple[str, ...] = ()
    macs: int = 0


class Graph:
    """Answer what the functions here ask of an onnx.ModelProto: producers, readers, constants, shapes."""

    def __init__(self, model: Any) -> None:
        import onnx
        from onnx import numpy_helper

        self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = self.model.graph
        for number, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        self.nodes = list(graph.node)
        self.made_by = {name: node for node in self.nodes for name in node.output}
        self.read_by: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.read_by.setdefault(name, []).append(node)
        self.outputs = [value.name for value in graph.output]
        self.values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._stored |= {
            n.output[0]: n.attribute[0].t for n in self.nodes if n.op_type == "Constant" and n.attribute[0].HasField("t")
        }
        self.inputs = [value.name for value in graph.input if value.name not in self._stored]
        self._array = numpy_helper.to_array

    def is_constant(self, name: str) -> bool:
        """Say whether a tensor is an initializer or made by a Constant."""
        return name in self._stored

    def constant(self, name: str) -> np.ndarray:
        """Return a constant's values."""
        return np.asarray(self._array(self._stored[name]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; Broken where it is not fixed."""
        if name in self._stored:
            return tuple(self._stored[name].dims)
        dims = tuple(d.dim_value for d in self.values[name].type.tensor_type.shape.dim) if name in self.values else (0,)
        if 0 in dims:
            raise Broken(f"no fixed shape for tensor '{name}'; export with fixed shapes (--refresh export)")
        return dims

    def root(self, name: str) -> str:
        """Follow a tensor back through moves to where its values are made."""
        while (node := self.made_by.get(name)) is not None and node.op_type in MOVES:
            name = node.input[0]
        return name

    def activations(self, node: Any) -> list[str]:
        """List a node's inputs that are no constants."""
        return [name for name in node.input if name and not self.is_constant(name)]

    def only_reader(self, name: str) -> Any | None:
        """Return the node that reads a tensor where there is exactly one and it is no output of the graph."""
        readers = self.read_by.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def fuse(model: Any) -> list[Group]:
    """Group a graph's nodes in graph order; constants and moves belong to no group."""
    graph = Graph(model)
    groups, taken = [], set()
    for node in graph.nodes:
        if node.name in taken or node.op_type == "Constant" or node.op_type in MOVES:
            continue
        if not graph.activations(node):
            continue
        group = _gelu(graph, node) or _attention(graph, node) or _linear(graph, node) or _single(graph, node)
        taken.update(group.nodes)
        groups.append(group)
    return groups


def collect_ranges(model: Any, groups: Sequence[Group], samples: Iterable[Tensors]) -> dict[str, tuple[float, float]]:
    """Run every sample in float and return (low, high) of each float tensor that a group reads, holds or puts out."""
    import onnx

    graph = Graph(model)
    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    wanted = {name for g in groups for name in (*g.inputs, *g.inner, g.tensor)}
    names = sorted(name for name in wanted if _is_float(graph, name))
    probed = [name for name in names if name not in graph.inputs]
    del probe.graph.output[:]
    probe.graph.output.extend(graph.values[name] for name in probed)
    session = open_session(probe)
    spreads = {name: Spread() for name in names}
    for sample in samples:
        values = dict(zip(probed, session.run(probed, sample), strict=True)) if probed else {}
        for name, spread in spreads.items():
            spread.add(values[name] if name in values else sample[name])
    return {name: (spread.low, spread.high) for name, spread in spreads.items()}


def fake_quantize(
    model: Any, groups: Sequence[Group], ranges: Ranges, keep: Collection[str] = (), outputs: bool = False
) -> Any:
    """Return the graph with every group rounded but those whose `tensor` is in `keep`.

    outputs: round the graph's outputs too, whatever puts them out (rknn: a quantized model's I/O is int8).
    """
    import onnx

    graph = Graph(model)
    out = onnx.ModelProto()
    out.CopyFrom(graph.model)
    writer = _Writer(graph, out, ranges)
    member = {name: g for g in groups for name in g.nodes if g.tensor not in keep}
    result: list[Any] = []
    for node in out.graph.node:
        group = member.get(node.name)
        if group is not None:
            writer.round_inputs(node, group, result)
        result.append(node)
        for name in node.output if group is not None else ():
            if name == group.tensor or name in group.inner:
                writer.round_output(node, name, result)
        if group is None and outputs and any(name in graph.outputs for name in node.output):
            for name in node.output:
                writer.round_output(node, name, result)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in result]
    del out.graph.node[:]
    out.graph.node.extend(kept)
    return out


def open_session(model: Any) -> Any:
    """Open a graph on the CPU with its rounding done in float: QDQ pairs are not fused to integer kernels."""
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    data = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


class _Writer:
    """Add rounding nodes to a graph, each tensor's once."""

    def __init__(self, graph: Graph, out: Any, ranges: Ranges) -> None:
        self._graph, self._out, self._ranges = graph, out, ranges
        self._rounded: dict[str, str] = {}
        self._weights: dict[str, str] = {}

    def round_inputs(self, node: Any, group: Group, result: list[Any]) -> None:
        """Make a node read rounded activations from outside its group, and rounded weights."""
        for index, name in enumerate(node.input):
            if name in group.weights:
                node.input[index] = self._weight(node, index, name)
            elif self._graph.root(name) in group.inputs and self._graph.root(name) in self._ranges:
                node.input[index] = self._round(name, self._graph.root(name), result)

    def round_output(self, node: Any, name: str, result: list[Any]) -> None:
        """Round a tensor where it is made; its name stays with the rounded value."""
        if name not in self._ranges or self._rounded.get(name) == name:
            return
        index = list(node.output).index(name)
        node.output[index] = f"{name}.exact"
        result += self._pair(f"{name}.exact", name, *self._ranges[name])
        self._rounded[name] = name

    def _round(self, name: str, root: str, result: list[Any]) -> str:
        """Round a tensor for those that read it in int8; nothing to do where it was rounded when made."""
        if self._rounded.get(root) == root:
            return name
        if name not in self._rounded:
            self._rounded[name] = f"{name}.rounded"
            result += self._pair(name, f"{name}.rounded", *self._ranges[root])
        return self._rounded[name]

    def _pair(self, source: str, target: str, low: float, high: float) -> list[Any]:
        from onnx import helper, numpy_helper

        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        names = [f"{target}.scale", f"{target}.zero"]
        values = (np.array(scale, np.float32), np.array(zero))
        self._out.graph.initializer.extend(
            numpy_helper.from_array(value, n) for value, n in zip(values, names, strict=True)
        )
        return [
            helper.make_node("QuantizeLinear", [source, *names], [f"{target}.int8"], name=f"{target}.quantize"),
            helper.make_node("DequantizeLinear", [f"{target}.int8", *names], [target], name=f"{target}.dequantize"),
        ]

    def _weight(self, node: Any, index: int, name: str) -> str:
        """Store a weight as its int8 values would come back: a linear's per output channel, a norm's asymmetric."""
        from onnx import numpy_helper

        key = f"{name}.{node.op_type}"
        if key not in self._weights:
            values = self._graph.constant(name).astype(np.float32)
            if node.op_type in LINEAR:
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                axis = 0 if node.op_type == "Conv" or transposed else values.ndim - 1
                rounded = round_per_channel(values, axis)
            else:
                rounded = round_asymmetric(values)
            self._weights[key] = f"{key}.rounded"
            self._out.graph.initializer.append(numpy_helper.from_array(rounded, self._weights[key]))
        return self._weights[key]


def round_per_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """Round to symmetric int8, one scale per index of `axis`."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    peak = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    return np.asarray(np.rint(values / scale) * scale, np.float32)


def round_asymmetric(values: np.ndarray) -> np.ndarray:
    """Round to 256 levels between the least and the largest value, 0 among them."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale, np.float32)


def _is_float(graph: Graph, name: str) -> bool:
    value = graph.values.get(name)
    return value is not None and value.type.tensor_type.elem_type == 1 and not graph.is_constant(name)


def _gelu(graph: Graph, node: Any) -> Group | None:
    """Recognise x/√2 → Erf → +1 → ·x → ·½, at its Div."""
    chain = [node]
    for op in GELU[1:]:
        following = graph.only_reader(chain[-1].output[0])
        if chain[0].op_type != GELU[0] or following is None or following.op_type != op:
            return None
        chain.append(following)
    half = graph.only_reader(chain[-1].output[0])
    if half is not None and half.op_type == "Mul" and len(graph.activations(half)) == 1:
        chain.append(half)
    return _group(graph, "gelu", chain, [node.input[0]])


def _attention(graph: Graph, node: Any) -> Group | None:
    """Recognise q·k (· scale, + mask) → Softmax → ·v, at its first product."""
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


def _linear(graph: Graph, node: Any) -> Group | None:
    """Recognise a product with a constant, the bias added to it and the factor it is scaled by."""
    if node.op_type not in LINEAR or not graph.is_constant(node.input[1]):
        return None
    chain = [node]
    for op in ("Add", "Mul"):
        following = graph.only_reader(chain[-1].output[0])
        if following is not None and following.op_type == op and len(graph.activations(following)) == 1:
            small = next(n for n in following.input if graph.is_constant(n))
            if (op == "Add" and len(graph.shape(small)) == 1) or math.prod(graph.shape(small)) == 1:
                chain.append(following)
    kind = {"Conv": "conv", "Gemm": "head"}.get(node.op_type, "linear")
    return replace(_group(graph, kind, chain, [node.input[0]]), weights=(node.input[1],))


def _single(graph: Graph, node: Any) -> Group:
    norm = node.op_type == "LayerNormalization"
    kind = {"LayerNormalization": "norm", "Add": "add"}.get(node.op_type, node.op_type)
    group = _group(graph, kind, [node], graph.activations(node))
    return replace(group, weights=tuple(node.input[1:])) if norm else group


def _group(graph: Graph, kind: str, chain: Sequence[Any], inputs: Sequence[str]) -> Group:
    roots = tuple(dict.fromkeys(graph.root(name) for name in inputs))
    macs = sum(count_macs(graph, node) for node in chain if node.op_type in LINEAR)
    return Group(chain[-1].output[0], kind, tuple(node.name for node in chain), roots, macs=macs)


def count_macs(graph: Graph, node: Any) -> int:
    """Count the multiply-accumulates of a MatMul, Gemm or Conv."""
    left, right, out = graph.shape(node.input[0]), graph.shape(node.input[1]), graph.shape(node.output[0])
    if node.op_type == "Conv":  # weights (out, in / groups, kernel...)
        inner = math.prod(right[1:])
    elif node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        inner = left[0]
    else:
        inner = left[-1]
    return math.prod(out) * inner


def kinds(groups: Sequence[Group]) -> dict[str, int]:
    """Count groups by kind."""
    return dict(Counter(group.kind for group in groups))
