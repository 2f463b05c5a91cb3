"""Make a tied output head and token table fit for int8.

Whisper's head is a Gemm on the table that a Gather reads. As it stands onnxruntime 1.31 would dequantize the whole
table at every step (20 million elements in tiny.en), for the Gather and for a Gemm that it runs in float.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper


def untie(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Turn each named Gemm on a constant into a MatMul on the transposed one, and Gathers on the same one into int8.

    The look-up keeps one scale per row; the MatMul is still float, and keeps the Gemm's name and input.
    """
    graph = model.graph
    constants = _constants(graph)
    for node in [n for n in graph.node if n.op_type == "Gemm" and n.name in names]:
        table = node.input[1]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        weight = constants[table].T if transposed else constants[table]
        _replace(graph, node, _matmul(graph, node, weight, constants))
        for gather in [n for n in graph.node if n.op_type == "Gather" and n.input[0] == table]:
            if not any(a.name == "axis" and a.i for a in gather.attribute):
                _replace(graph, gather, _lookup(graph, gather, constants[table]))


def is_plain_gemm(node: onnx.NodeProto) -> bool:
    """Say whether a node is a Gemm that `untie` can turn into a MatMul: nothing scaled, left factor as it is."""
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    return node.op_type == "Gemm" and all(
        helper.get_attribute_value(a) == plain[a.name] for a in node.attribute if a.name in plain
    )


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node reads any more."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _matmul(
    graph: onnx.GraphProto, gemm: onnx.NodeProto, weight: np.ndarray, constants: dict[str, np.ndarray]
) -> list[onnx.NodeProto]:
    name = f"{gemm.input[1]}.transposed"
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
    # A head without bias has one of zeros only because a Gemm may share the table with the Gather.
    bias = gemm.input[2] if len(gemm.input) > 2 else ""
    if not bias or (bias in constants and not constants[bias].any()):
        return [helper.make_node("MatMul", [gemm.input[0], name], [gemm.output[0]], name=gemm.name)]
    product = f"{gemm.output[0]}.product"
    _declare(graph, product, gemm.output[0])
    return [
        helper.make_node("MatMul", [gemm.input[0], name], [product], name=gemm.name),
        helper.make_node("Add", [product, bias], [gemm.output[0]], name=f"{gemm.name}.bias"),
    ]


def _lookup(graph: onnx.GraphProto, gather: onnx.NodeProto, table: np.ndarray) -> list[onnx.NodeProto]:
    """Gather int8 rows and their scales, and multiply: 1 byte per element instead of 4."""
    name, indices = gather.input[0], gather.input[1]
    if all(tensor.name != f"{name}.int8" for tensor in graph.initializer):
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.finfo(np.float32).tiny * 127) / np.float32(127)
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.rint(table / scale).astype(np.int8), f"{name}.int8"),
                numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"),
            ]
        )
    row, scale_of_row, whole = (f"{gather.output[0]}.{part}" for part in ("int8", "scale", "float"))
    return [
        helper.make_node("Gather", [f"{name}.int8", indices], [row], name=f"{gather.name}.int8"),
        helper.make_node("Gather", [f"{name}.scale", indices], [scale_of_row], name=f"{gather.name}.scale"),
        helper.make_node("Cast", [row], [whole], name=f"{gather.name}.float", to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [whole, scale_of_row], [gather.output[0]], name=gather.name),
    ]


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Read initializers and Constant nodes by the name of their tensor."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return values


def _replace(graph: onnx.GraphProto, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    nodes = [n for node in graph.node for n in (new if node is old or node == old else [node])]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _declare(graph: onnx.GraphProto, name: str, like: str) -> None:
    """Give a new tensor the type and shape of another."""
    values = (*graph.value_info, *graph.output)
    found = next((value for value in values if value.name == like), None)
    if found is not None:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(found)
        copy.name = name
        graph.value_info.append(copy)
