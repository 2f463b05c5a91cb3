"""What of a graph really is int8: counted in the file, and again in what onnxruntime makes of it."""

import json
import tempfile
from pathlib import Path

import onnx

from nightjar.graphs.macs import MULTIPLYING, count_macs
from nightjar.graphs.onnx_graph import tensor_shapes
from targets.onnx.quantize import open_session

PLUMBING = ("Constant", "QuantizeLinear", "DequantizeLinear")
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


def count_integer_kernels(path: Path) -> int:
    """Count the nodes that onnxruntime runs with an integer kernel on this machine's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(str(path), optimized)
        return sum(n.op_type in INTEGER_KERNELS for n in onnx.load(optimized).graph.node)
