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
    writer = _Writer(graph, out, ranges, schemes)
    group_of = {name: g for g in groups for name in g.nodes if g.tensor not in float_layers}
    result: list[Any] = []
    for node in out.graph.node:
        group = group_of.get(node.name)
        if group is not None:
            writer.round_inputs(node, group, result)
        result.append(node)
        rounded = {group.tensor, *group.inner} if group is not None else set()
        for name in node.output:
            if name in rounded or (outputs and name in graph.outputs):
                writer.round_output(node, name, group, result)
    set_nodes(out.graph, result)
    return out


class _Writer:
    """Add rounding nodes to a graph, once per tensor and number of bits."""

    def __init__(self, graph: Graph, out: Any, ranges: Ranges, schemes: Mapping[str, Scheme]) -> None:
        self._graph, self._out, self._ranges, self._schemes = graph, out, ranges, schemes
        self._output_bits: dict[str, int] = {}  # of tensors rounded by their producers
        self._inputs: dict[tuple[str, int], str] = {}
        self._weights: dict[str, str] = {}
        if schemes and all(each.domain != WIDE_DOMAIN for each in out.opset_import):
            out.opset_import.add(domain=WIDE_DOMAIN, version=1)

    def _scheme(self, group: Group | None) -> Scheme:
        return self._schemes.get(group.tensor, A8_W8) if group is not None else A8_W8

    def round_inputs(self, node: Any, group: Group, result: list[Any]) -> None:
        """Make a node read rounded weights, and rounded activations from outside its group."""
        scheme = self._scheme(group)
        for index, name in enumerate(node.input):
            root = self._graph.root(name)
            if name in group.weights:
                node.input[index] = self._weight(node, name, scheme.weights)
            elif root in group.inputs and root in self._ranges:
                node.input[index] = self._input(name, root, scheme.activations, result)

    def round_output(self, node: Any, name: str, group: Group | None, result: list[Any]) -> None:
        """Round a tensor at its producer; the rounded value keeps the tensor's name."""
        root = self._graph.root(name)
        if root not in self._ranges or name in self._output_bits:
            return
        bits = self._scheme(group).activations
        node.output[list(node.output).index(name)] = f"{name}.exact"
        result += self._pair(f"{name}.exact", name, *self._ranges[root], bits)
        self._output_bits[name] = bits

    def _input(self, name: str, root: str, bits: int, result: list[Any]) -> str:
        """Return a tensor rounded for its readers; a tensor with no more bits at its producer stays as it is."""
        if self._output_bits.get(root, 99) <= bits:
            return name
        if (name, bits) not in self._inputs:
            target = f"{name}.rounded{bits if bits != 8 else ''}"
            self._inputs[name, bits] = target
            result += self._pair(name, target, *self._ranges[root], bits)
        return self._inputs[name, bits]

    def _pair(self, source: str, target: str, low: float, high: float, bits: int) -> list[Any]:
        """Make the QuantizeLinear and DequantizeLinear from `source` to `target`."""
        from onnx import helper

        low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
        scale = (high - low) / most or 1.0
        zero = (np.uint8 if bits == 8 else np.uint16)(np.clip(np.rint(-low / scale), 0, most))
        parameters = {f"{target}.scale": np.array(scale, np.float32), f"{target}.zero": np.array(zero)}
        add_constants(self._out.graph, parameters)
        domain = {} if bits == 8 else {"domain": WIDE_DOMAIN}
        middle = f"{target}.int{bits}"
        return [
            helper.make_node("QuantizeLinear", [source, *parameters], [middle], name=f"{target}.quantize", **domain),
            helper.make_node(
                "DequantizeLinear", [middle, *parameters], [target], name=f"{target}.dequantize", **domain
            ),
        ]

    def _weight(self, node: Any, name: str, bits: int) -> str:
        """Store a weight rounded: a linear's per output channel, a norm's asymmetrically."""
        key = f"{name}.{node.op_type}{bits if bits != 8 else ''}"
        if key not in self._weights:
            values = self._graph.constant(name).astype(np.float32)
            if node.op_type in MULTIPLYING:
                axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else values.ndim - 1
                rounded = round_per_channel(values, axis, bits)
            else:
                rounded = round_asymmetric(values, bits)
            self._weights[key] = f"{key}.rounded"
            add_constants(self._out.graph, {self._weights[key]: rounded})
        return self._weights[key]


def round_per_channel(values: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Round to symmetric integers of `bits`, one scale per index of `axis`."""
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
