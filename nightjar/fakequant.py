"""What int8 does to a graph, on the host: run it with some of its groups rounded.

A group in int8 reads rounded inputs and weights and puts out a rounded tensor; a float group reads what is there.
That is what rknn-toolkit2 2.5 makes of a hybrid model, nearly (docs/decisions/005-precision-search.md).
onnx and onnxruntime are imported when used: the command line loads without them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from nightjar.groups import LINEAR, Graph, Group

Ranges = Mapping[str, tuple[float, float]]


def fake_quantize(
    model: Any, groups: Sequence[Group], ranges: Ranges, keep: Collection[str] = (), outputs: bool = False
) -> Any:
    """Return the graph with every group rounded but those whose `tensor` is in `keep`.

    model: onnx.ModelProto, or the Graph of one where many are made of it.
    outputs: round the graph's outputs too, whatever puts them out (rknn: a quantized model's I/O is int8).
    """
    import onnx

    graph = model if isinstance(model, Graph) else Graph(model)
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
        inside = {group.tensor, *group.inner} if group is not None else set()
        for name in node.output:
            if name in inside or (outputs and name in graph.outputs):
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
        root = self._graph.root(name)
        if root not in self._ranges or self._rounded.get(name) == name:
            return
        node.output[list(node.output).index(name)] = f"{name}.exact"
        result += self._pair(f"{name}.exact", name, *self._ranges[root])
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
        values: tuple[np.ndarray, ...] = (np.array(scale, np.float32), np.array(zero))
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
