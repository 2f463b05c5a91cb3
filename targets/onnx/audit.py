"""Count the int8 nodes of a graph: in the file, and in the graph that onnxruntime makes of it."""

import tempfile
from pathlib import Path

from nightjar.graphs.macs import MULTIPLYING, count_macs
from nightjar.graphs.onnx_file import load_model
from nightjar.graphs.onnx_graph import infer_shapes, tensor_shapes
from nightjar.graphs.onnx_session import open_session
from targets.onnx.batched_decoder import fix_single_lane

PLUMBING = ("Constant", "QuantizeLinear", "DequantizeLinear")
INTEGER_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv", "MatMulInteger", "ConvInteger")


def audit(path: Path) -> dict[str, int | float]:
    """Return nodes_total, nodes_int8, nodes_run_int8 and int8_mac_share (of all multiply-accumulates).

    A node is int8 when both its factors come from a DequantizeLinear. `nodes_run_int8` counts integer kernels after
    onnxruntime's optimiser on this machine: where it is lower, those nodes have int8 values and run in float.
    """
    model = infer_shapes(fix_single_lane(load_model(path)))
    shapes = tensor_shapes(model)
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    products = [n for n in model.graph.node if n.op_type in MULTIPLYING]
    int8 = [n for n in products if dequantized.issuperset(n.input[:2])]
    total, in_int8 = (sum(count_macs(node, shapes) for node in nodes) for nodes in (products, int8))
    return {
        "nodes_total": sum(n.op_type not in PLUMBING for n in model.graph.node),
        "nodes_int8": len(int8),
        "nodes_run_int8": count_integer_kernels(path) if int8 else 0,
        "int8_mac_share": round(in_int8 / total, 4) if total else 0.0,
    }


def count_integer_kernels(path: Path) -> int:
    """Count the nodes that onnxruntime runs with an integer kernel on this machine's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, integer_kernels=True, optimized=optimized)
        return sum(n.op_type in INTEGER_KERNELS for n in load_model(optimized).graph.node)
