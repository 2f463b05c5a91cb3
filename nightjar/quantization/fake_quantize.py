"""Fake quantization: run a graph on the host with some of its groups rounded to 8 or 16 bits.

A rounded group reads rounded inputs and weights, and its output is rounded; a float group reads its inputs as they are.
How near this is to a vendor's hybrid model: docs/decisions/005-precision-search.md. onnx is imported when used.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from nightjar.graphs.fusion import Group
from nightjar.graphs.macs import MULTIPLYING
from nightjar.graphs.onnx_graph import Graph, add_constants, attribute, set_nodes

Ranges = Mapping[str, tuple[float, float]]

WIDE_DOMAIN = "com.microsoft"  # onnxruntime's QuantizeLinear has 16 bits in every opset, ONNX's from 21 on


class Scheme(NamedTuple):
    """Bits of activations and weights."""

    activations: int = 8
    weights: int = 8


A8_W8, A16_W8, A16_W16 = Scheme(8, 8), Scheme(16, 8), Scheme(16, 16)


def fake_quantize(
    model: Any,
    groups: Sequence[Group],
    ranges: Ranges,
    float_layers: Collection[str] = (),
    outputs: bool = False,
    schemes: Mapping[str, Scheme] = {},
) -> Any:
    """Return a copy of the graph with every group rounded but those whose `tensor` is in `float_layers`.

    model: onnx.ModelProto, or its Graph where many copies are made. outputs: round the graph's outputs too, whichever
    group computes them. schemes: by tensor, of groups that are not a8_w8; a group rounds an input of more bits to its
    own.
    """
    graph = model if isinstance(model, Graph) else Graph(model)
    out = deepcopy(graph.model)
    if schemes and all(each.domain != WIDE_DOMAIN for each in out.opset_import):
        out.opset_import.add(domain=WIDE_DOMAIN, version=1)
    writer = _Writer(graph, out, ranges)
    group_of = {name: g for g in groups for name in g.nodes if g.tensor not in float_layers}
    for node in out.graph.node:
        group = group_of.get(node.name)
        scheme = schemes.get(group.tensor, A8_W8) if group is not None else A8_W8
        if group is not None:
            writer.round_inputs(node, group, scheme)
        writer.nodes.append(node)
        rounded = {group.tensor, *group.inner} if group is not None else set()
        for index, name in enumerate(node.output):
            if name in rounded or (outputs and name in graph.outputs):
                writer.round_output(node, index, scheme.activations)
    set_nodes(out.graph, writer.nodes)
    return out


class _Writer:
    """Add rounding nodes to a graph, once per tensor and number of bits."""

    def __init__(self, graph: Graph, out: Any, ranges: Ranges) -> None:
        self.nodes: list[Any] = []
        self._graph, self._out, self._ranges = graph, out, ranges
        self._output_bits: dict[str, int] = {}  # of tensors rounded by their producers
        self._made: set[str] = set()  # rounded inputs and weights

    def round_inputs(self, node: Any, group: Group, scheme: Scheme) -> None:
        """Make a node read rounded weights, and rounded activations from outside its group."""
        bits = scheme.activations
        for index, name in enumerate(node.input):
            root = self._graph.root(name)
            if name in group.weights:
                node.input[index] = self._weight(node, name, scheme.weights)
            # A tensor with no more bits at its producer stays as it is.
            elif root in group.inputs and root in self._ranges and self._output_bits.get(root, 99) > bits:
                node.input[index] = f"{name}.rounded{bits if bits != 8 else ''}"
                self._round(name, node.input[index], root, bits)

    def round_output(self, node: Any, index: int, bits: int) -> None:
        """Round a tensor at its producer; the rounded value keeps the tensor's name."""
        name = node.output[index]
        root = self._graph.root(name)
        if root in self._ranges and name not in self._output_bits:
            node.output[index] = f"{name}.exact"
            self._round(f"{name}.exact", name, root, bits)
            self._output_bits[name] = bits

    def _round(self, source: str, target: str, root: str, bits: int) -> None:
        """Add the QuantizeLinear and DequantizeLinear from `source` to `target`, in the range of `root`."""
        from onnx import helper

        if target in self._made:
            return
        self._made.add(target)
        low, high = self._ranges[root]
        scale, zero = _asymmetric(low, high, bits)
        parameters = {
            f"{target}.scale": np.array(scale, np.float32),
            f"{target}.zero": np.array(zero, np.uint8 if bits == 8 else np.uint16),
        }
        add_constants(self._out.graph, parameters)
        domain = None if bits == 8 else WIDE_DOMAIN
        middle = f"{target}.int{bits}"
        for op, before, after in (("Quantize", source, middle), ("Dequantize", middle, target)):
            inputs, name = [before, *parameters], f"{target}.{op.lower()}"
            self.nodes.append(helper.make_node(f"{op}Linear", inputs, [after], name=name, domain=domain))

    def _weight(self, node: Any, name: str, bits: int) -> str:
        """Store a weight rounded: a linear's per output channel, a norm's asymmetrically."""
        target = f"{name}.{node.op_type}{bits if bits != 8 else ''}.rounded"
        if target not in self._made:
            self._made.add(target)
            values = self._graph.constant(name).astype(np.float32)
            if node.op_type in MULTIPLYING:
                axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else values.ndim - 1
                rounded = round_per_channel(values, axis, bits)
            else:
                scale, zero = _asymmetric(float(values.min()), float(values.max()), bits)
                rounded = (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale
            add_constants(self._out.graph, {target: np.asarray(rounded, np.float32)})
        return target


def round_per_channel(values: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Round to symmetric integers of `bits`, one scale per index of `axis`."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    peak = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(peak > 0, peak / (2 ** (bits - 1) - 1), 1).astype(np.float32)
    return np.asarray(np.rint(values / scale) * scale, np.float32)


def _asymmetric(low: float, high: float, bits: int) -> tuple[float, float]:
    """Return scale and zero point of 2**bits levels from `low` to `high`, 0 among them."""
    low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = (high - low) / most or 1.0
    return scale, np.clip(np.rint(-low / scale), 0, most)
