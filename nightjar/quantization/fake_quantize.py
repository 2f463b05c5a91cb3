"""What integers do to a graph, on the host: run it with some of its groups rounded, to 8 bits or to 16.

A group in integers reads rounded inputs and weights and puts out a rounded tensor; a float group reads what is there.
That is what rknn-toolkit2 2.5 makes of a hybrid model, nearly (docs/decisions/005-precision-search.md).
onnx and onnxruntime are imported when used: the command line loads without them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nightjar.graphs.fusion import LINEAR, Group
from nightjar.graphs.onnx_graph import Graph

Ranges = Mapping[str, tuple[float, float]]


class Scheme(NamedTuple):
    """How many bits activations and weights have."""

    activations: int = 8
    weights: int = 8


A8_W8, A16_W8, A16_W16 = Scheme(8, 8), Scheme(16, 8), Scheme(16, 16)


def fake_quantize(
    model: Any,
    groups: Sequence[Group],
    ranges: Ranges,
    keep: Collection[str] = (),
    outputs: bool = False,
    schemes: Mapping[str, Scheme] = {},
) -> Any:
    """Return the graph with every group rounded but those whose `tensor` is in `keep`.

    model: onnx.ModelProto, or the Graph of one where many are made of it.
    outputs: round the graph's outputs too, whatever puts them out (rknn: a quantized model's I/O is int8).
    schemes: of groups that are not a8_w8, by their tensors; a group reads in its own bits what another made in more.
    """
    import onnx

    graph = model if isinstance(model, Graph) else Graph(model)
    out = onnx.ModelProto()
    out.CopyFrom(graph.model)
    writer = _Writer(graph, out, ranges, schemes)
    member = {name: g for g in groups for name in g.nodes if g.tensor not in keep}
    result: list[Any] = []
    for node in out.graph.node:
        group = member.get(node.name)
        if group is not None:
            writer.round_inputs(node, group, result)
        result.append(node)
        inside = {group.tensor, *group.inner} if group is not None else set()
        for name in node.output:
            if name in inside or (outputs and name in graph.outputs):
                writer.round_output(node, name, group, result)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in result]
    del out.graph.node[:]
    out.graph.node.extend(kept)
    return out


def open_session(model: Any, threads: int = 0) -> Any:
    """Open a graph on the CPU with its rounding done in float: QDQ pairs are not fused to integer kernels.

    threads: of the runtime's own, 0 for one per core.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    data = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


class _Writer:
    """Add rounding nodes to a graph, each tensor's once."""

    def __init__(self, graph: Graph, out: Any, ranges: Ranges, schemes: Mapping[str, Scheme]) -> None:
        self._graph, self._out, self._ranges, self._schemes = graph, out, ranges, schemes
        self._made: dict[str, int] = {}  # bits that a tensor was rounded to where it was made
        self._rounded: dict[tuple[str, int], str] = {}
        self._weights: dict[str, str] = {}
        if schemes:
            _know_wide_levels(out)

    def _scheme(self, group: Group | None) -> Scheme:
        return self._schemes.get(group.tensor, A8_W8) if group is not None else A8_W8

    def round_inputs(self, node: Any, group: Group, result: list[Any]) -> None:
        """Make a node read rounded activations from outside its group, and rounded weights."""
        scheme = self._scheme(group)
        for index, name in enumerate(node.input):
            if name in group.weights:
                node.input[index] = self._weight(node, index, name, scheme.weights)
            elif self._graph.root(name) in group.inputs and self._graph.root(name) in self._ranges:
                node.input[index] = self._round(name, self._graph.root(name), scheme.activations, result)

    def round_output(self, node: Any, name: str, group: Group | None, result: list[Any]) -> None:
        """Round a tensor where it is made; its name stays with the rounded value."""
        root = self._graph.root(name)
        if root not in self._ranges or name in self._made:
            return
        bits = self._scheme(group).activations
        node.output[list(node.output).index(name)] = f"{name}.exact"
        result += self._pair(f"{name}.exact", name, *self._ranges[root], bits)
        self._made[name] = bits

    def _round(self, name: str, root: str, bits: int, result: list[Any]) -> str:
        """Round a tensor for those that read it in so many bits; nothing to do where it has no more when made."""
        if self._made.get(root, 99) <= bits:
            return name
        if (name, bits) not in self._rounded:
            target = f"{name}.rounded{bits if bits != 8 else ''}"
            self._rounded[name, bits] = target
            result += self._pair(name, target, *self._ranges[root], bits)
        return self._rounded[name, bits]

    def _pair(self, source: str, target: str, low: float, high: float, bits: int) -> list[Any]:
        from onnx import helper, numpy_helper

        low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
        scale = (high - low) / most or 1.0
        level = np.uint8 if bits == 8 else np.uint16
        zero = level(np.clip(np.rint(-low / scale), 0, most))
        names = [f"{target}.scale", f"{target}.zero"]
        values: tuple[np.ndarray, ...] = (np.array(scale, np.float32), np.array(zero))
        self._out.graph.initializer.extend(
            numpy_helper.from_array(value, n) for value, n in zip(values, names, strict=True)
        )
        domain = {} if bits == 8 else {"domain": WIDE_LEVELS}
        middle = f"{target}.int{bits}"
        return [
            helper.make_node("QuantizeLinear", [source, *names], [middle], name=f"{target}.quantize", **domain),
            helper.make_node("DequantizeLinear", [middle, *names], [target], name=f"{target}.dequantize", **domain),
        ]

    def _weight(self, node: Any, index: int, name: str, bits: int) -> str:
        """Store a weight as its integers would come back: a linear's per output channel, a norm's asymmetric."""
        from onnx import numpy_helper

        key = f"{name}.{node.op_type}{bits if bits != 8 else ''}"
        if key not in self._weights:
            values = self._graph.constant(name).astype(np.float32)
            if node.op_type in LINEAR:
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                axis = 0 if node.op_type == "Conv" or transposed else values.ndim - 1
                rounded = round_per_channel(values, axis, bits)
            else:
                rounded = round_asymmetric(values, bits)
            self._weights[key] = f"{key}.rounded"
            self._out.graph.initializer.append(numpy_helper.from_array(rounded, self._weights[key]))
        return self._weights[key]


WIDE_LEVELS = "com.microsoft"  # onnxruntime's own QuantizeLinear has 16 bits in every opset, ONNX's from 21 on


def _know_wide_levels(model: Any) -> None:
    """Let a graph use onnxruntime's own operators."""
    from onnx import helper

    if all(each.domain != WIDE_LEVELS for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(WIDE_LEVELS, 1))


def round_per_channel(values: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Round to symmetric integers of so many bits, one scale per index of `axis`."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    peak = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(peak > 0, peak / (2 ** (bits - 1) - 1), 1).astype(np.float32)
    return np.asarray(np.rint(values / scale) * scale, np.float32)


def round_asymmetric(values: np.ndarray, bits: int = 8) -> np.ndarray:
    """Round to 2**bits levels between the least and the largest value, 0 among them."""
    most = 2**bits - 1
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / most or 1.0
    zero = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, most) - zero) * scale, np.float32)
