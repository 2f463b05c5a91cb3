"""What of a graph really is int8: counted in the file, and again in what onnxruntime makes of it."""

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from nightjar.errors import Broken
from targets.onnx.quantize import open_session

MULTIPLYING = ("MatMul", "Gemm", "Conv")
PLUMBING = ("Constant", "QuantizeLinear", "DequantizeLinear")
FIXED = "export with fixed shapes (a graph of ours: --refresh export)"
INTEGER_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv", "MatMulInteger", "ConvInteger")


def audit(path: Path) -> dict[str, int | float]:
    """Return size_bytes, nodes_total, nodes_int8, nodes_run_int8 and int8_mac_share (of all multiply-accumulates).

    A node is int8 when both its factors come from a DequantizeLinear. `nodes_run_int8` counts integer kernels after
    onnxruntime's optimiser on this machine: where it is lower, those nodes have int8 values and run in float.
    """
    model = onnx.shape_inference.infer_shapes(alone(onnx.load(path)), data_prop=True)
    shapes = tensor_shapes(model)
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    total = int8 = nodes_int8 = 0
    for node in model.graph.node:
        if node.op_type in MULTIPLYING:
            macs = count_macs(node, shapes)
            total += macs
            if dequantized.issuperset(node.input[:2]):
                int8 += macs
                nodes_int8 += 1
    return {
        "size_bytes": path.stat().st_size,
        "nodes_total": sum(n.op_type not in PLUMBING for n in model.graph.node),
        "nodes_int8": nodes_int8,
        "nodes_run_int8": count_integer_kernels(path) if nodes_int8 else 0,
        "int8_mac_share": round(int8 / total, 4) if total else 0.0,
    }


def alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a graph that takes several clips (lanes.py) the fixed shapes it has for one, in place; others stay."""
    shapes = json.loads(lanes_of(model).get("shapes", "{}"))
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    return model


def lanes_of(model: onnx.ModelProto) -> dict[str, str]:
    """Read what lanes.py left in a graph: `lanes`, and the `shapes` for one clip as JSON; empty for any other graph."""
    ours = "nightjar."
    return {p.key.removeprefix(ours): p.value for p in model.metadata_props if p.key.startswith(ours)}


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape; an unknown dimension is 0."""
    graph = model.graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def count_macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the multiply-accumulates of a MatMul, Gemm or Conv; Broken where its shapes are not fixed."""
    try:
        left, right, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    except KeyError as exc:
        raise Broken(f"no shape for {exc} at node '{node.name}'; {FIXED}") from exc
    if node.op_type == "Conv":  # weights (out, in / groups, kernel...)
        inner = math.prod(right[1:])
    elif node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        inner = left[0]
    else:
        inner = left[-1]
    macs = math.prod(out) * inner
    if macs <= 0:
        raise Broken(f"node '{node.name}' has no fixed shape {left} x {right} -> {out}; {FIXED}")
    return macs


def count_integer_kernels(path: Path) -> int:
    """Count the nodes that onnxruntime runs with an integer kernel on this machine's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(str(path), optimized)
        return sum(n.op_type in INTEGER_KERNELS for n in onnx.load(optimized).graph.node)
