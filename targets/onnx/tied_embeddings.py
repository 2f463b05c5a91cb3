"""Make an output head that shares its table with the token look-up fit for int8.

Whisper's head is a Gemm on the table that a Gather reads. As it stands onnxruntime 1.31 would dequantize the whole
table at every step (20 million elements in tiny.en), for the Gather and for a Gemm that it runs in float.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper

from nightjar.graphs.onnx_graph import add_constants, attribute, constant_values, set_nodes


def untie(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Turn each named Gemm on a constant into a MatMul on the transposed one, and Gathers on the same one into int8.

    The look-up has one scale per row; the MatMul is still float, and keeps the Gemm's name and input.
    """
    graph = model.graph
    constants = constant_values(graph)
    replaced: dict[str, list[onnx.NodeProto]] = {}  # by output
    for gemm in (n for n in graph.node if n.op_type == "Gemm" and n.name in names):
        table = gemm.input[1]
        weight = constants[table].T if attribute(gemm, "transB", 0) else constants[table]
        replaced[gemm.output[0]] = _matmul(graph, gemm, weight, constants)
        for gather in (n for n in graph.node if n.op_type == "Gather" and n.input[0] == table):
            if not attribute(gather, "axis", 0) and gather.output[0] not in replaced:
                replaced[gather.output[0]] = _lookup(graph, gather, constants[table])
    set_nodes(graph, [new for node in graph.node for new in replaced.get(node.output[0], [node])])


def is_plain_gemm(node: onnx.NodeProto) -> bool:
    """Return whether a node is a Gemm that `untie` can turn into a MatMul: not scaled, left factor not transposed."""
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    return node.op_type == "Gemm" and all(attribute(node, name, value) == value for name, value in plain.items())


def _matmul(
    graph: onnx.GraphProto, gemm: onnx.NodeProto, weight: np.ndarray, constants: dict[str, np.ndarray]
) -> list[onnx.NodeProto]:
    name = f"{gemm.input[1]}.transposed"
    if all(tensor.name != name for tensor in graph.initializer):
        add_constants(graph, {name: weight})
    # A head without bias has one of zeros only because a Gemm can share the table with the Gather.
    bias = gemm.input[2] if len(gemm.input) > 2 else ""
    if not bias or (bias in constants and not constants[bias].any()):
        return [helper.make_node("MatMul", [gemm.input[0], name], [gemm.output[0]], name=gemm.name)]
    product = f"{gemm.output[0]}.product"
    for value in [v for v in (*graph.value_info, *graph.output) if v.name == gemm.output[0]][:1]:
        graph.value_info.append(value)
        graph.value_info[-1].name = product
    return [
        helper.make_node("MatMul", [gemm.input[0], name], [product], name=gemm.name),
        helper.make_node("Add", [product, bias], [gemm.output[0]], name=f"{gemm.name}.bias"),
    ]


def _lookup(graph: onnx.GraphProto, gather: onnx.NodeProto, table: np.ndarray) -> list[onnx.NodeProto]:
    """Gather int8 rows and their scales, and multiply: 1 byte per element instead of 4."""
    name, indices = gather.input[0], gather.input[1]
    if all(tensor.name != f"{name}.int8" for tensor in graph.initializer):
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.finfo(np.float32).tiny * 127) / np.float32(127)
        rows = np.rint(table / scale).astype(np.int8)
        add_constants(graph, {f"{name}.int8": rows, f"{name}.scale": scale.astype(np.float32)})
    row, scale_of_row, whole = (f"{gather.output[0]}.{part}" for part in ("int8", "scale", "float"))
    return [
        helper.make_node("Gather", [f"{name}.int8", indices], [row], name=f"{gather.name}.int8"),
        helper.make_node("Gather", [f"{name}.scale", indices], [scale_of_row], name=f"{gather.name}.scale"),
        helper.make_node("Cast", [row], [whole], name=f"{gather.name}.float", to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [whole, scale_of_row], [gather.output[0]], name=gather.name),
    ]
