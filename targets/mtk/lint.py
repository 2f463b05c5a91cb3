"""List the operators of a graph that MDLA 5.3 lacks.

It checks the .tflite of the stand-in's converter; where that is not installed the ONNX graph, whose operators mostly
become TFLite's of the same name. Source: NeuroPilot 8.0.10's list of operators (superLin006/MTK_model_zoo).
"""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nightjar.errors import ToolchainMissing
from nightjar.graphs.onnx_file import load_model
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.lint import Finding, Problem, boundary_problems, findings_of, int64_problem, rank_problem
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.graphs import PartGraph, read_model
from targets.mtk.stand_in.toolchain import compile as inside
from targets.mtk.tflite import Model, read

log = logging.getLogger(__name__)

TOOLCHAIN = "mtk.stand_in"
NPU = "MDLA 5.3"
RANK = 4

_KNOWN = """
ADD AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV FULLY_CONNECTED GELU LOGISTIC
MAXIMUM MEAN MINIMUM MUL PAD PADV2 QUANTIZE RELU RESHAPE RSQRT SLICE SOFTMAX SPLIT SQRT SQUARED_DIFFERENCE SQUEEZE
STRIDED_SLICE SUB SUM TANH TRANSPOSE
"""
KNOWN = frozenset(_KNOWN.split())
# Operators that the NPU refuses, of TFLite and those of ONNX that become them: why, and the remedy.
_REFUSED = {
    "GATHER GATHER_ND EMBEDDING_LOOKUP EMBEDDING_LOOKUP_SPARSE HASHTABLE_LOOKUP Gather GatherND GatherElements": (
        "MDLA 5.3 has no look-up: there is no GATHER on the NPU",
        "the recipe looks tokens and positions up on the CPU (host embedding): the decoder takes the rows themselves",
    ),
    "EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT REDUCE_ANY REDUCE_ALL "
    "Equal Less LessOrEqual Greater GreaterOrEqual And Or Not": (
        "MDLA 5.3 has no comparison and no logical operator",
        "the recipe adds masks as numbers",
    ),
    "SELECT SELECT_V2 WHERE Where": (
        "MDLA 5.3 has no conditional selection",
        "the recipe adds a finite mask (-10000) instead",
    ),
    "TOPK_V2 ARG_MAX ARG_MIN TopK ArgMax": ("MDLA 5.3 has no sorting", "decode on the CPU, from the logits"),
    "LOG LOG_SOFTMAX Log LogSoftmax": (
        "MDLA 5.3 has no logarithm",
        "take the logarithm on the CPU; the argmax needs none",
    ),
    "FLOOR CEIL ROUND FLOOR_DIV FLOOR_MOD Floor Ceil Round": (
        "MDLA 5.3 has no rounding to integers",
        "compute indices and positions on the CPU",
    ),
    "FILL RANGE SHAPE ONE_HOT ConstantOfShape Range Shape OneHot": (
        "MDLA 5.3 does not create tensors",
        "export with fixed shapes, so that it becomes a constant",
    ),
    "CUMSUM CumSum": ("MDLA 5.3 has no cumulative sum", "multiply by a triangular matrix of ones"),
    "LEAKY_RELU LeakyRelu": ("MDLA 5.3 has no LEAKY_RELU", "write it as two RELUs and a sum"),
}
REFUSED = {op: reason for ops, reason in _REFUSED.items() for op in ops.split()}


def lint(graphs: Path) -> list[Finding]:
    """List what the NPU refuses in a folder of ONNX graphs; raises BadOptions and the toolchain's errors."""
    model = read_model(graphs)
    found: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        converted = Path(name)
        try:
            convert_parts(toolchain(TOOLCHAIN), graphs, model, converted, to_quantize=False)
        except ToolchainMissing:
            log.warning(
                "this checks the ONNX graphs; with `nightjar toolchain install %s` it checks real .tflite files",
                TOOLCHAIN,
            )
        for part, entry in model["parts"].items():
            graph, file = Graph(load_model(graphs / entry["file"])), converted / f"{part}.tflite"
            found += findings_of(part, boundary_problems(entry, graph.shapes, NPU, RANK))
            found += findings_of(part, _onnx_problems(graph, operators=not file.is_file()))
            found += of_tflite(part, read(file)) if file.is_file() else []
    return found


def convert_parts(found: Toolchain, graphs: Path, model: Mapping[str, Any], folder: Path, *, to_quantize: bool) -> None:
    """Convert every part to float .tflite in `folder`, by the stand-in's converter."""
    weights = [PartGraph(graphs, model, part).write_weights(folder) for part in model["parts"]]
    job = {"kind": "convert", "to_quantize": to_quantize, "parts": weights}
    found.call(inside.__name__, job, folder, timeout_s=1800)


def of_tflite(part: str, model: Model) -> list[Finding]:
    """List the operators and tensors of a .tflite file that the NPU lacks."""
    return findings_of(part, _tflite_problems(model))


def _tflite_problems(model: Model) -> Iterator[Problem]:
    for op in model.ops:
        name = _node_name(model.tensors[op.outputs[0]].name if op.outputs else op.op)
        if op.op in REFUSED:
            yield Problem("refuse", name, op.op, *REFUSED[op.op])
        elif op.op not in KNOWN and not op.op.startswith("MTKEXT_"):
            why = f"it is in neither list of operators, those that {NPU} has and those that it lacks"
            yield Problem("warn", name, op.op, why, "look for it in the execution plan after compiling")
        for tensor in (model.tensors[number] for number in op.outputs):
            if len(tensor.shape) > RANK:
                yield rank_problem(_node_name(tensor.name), op.op, tensor.shape, NPU, RANK)
            if tensor.dtype == "int64":
                yield int64_problem(_node_name(tensor.name), op.op, NPU)


def _onnx_problems(graph: Graph, operators: bool) -> Iterator[Problem]:
    """Yield tensors of too many dimensions and, on request, operators that become ones that the NPU lacks."""
    for node in graph.nodes:
        if operators and node.op_type in REFUSED and graph.activations(node):
            yield Problem("refuse", node.name, node.op_type, *REFUSED[node.op_type])
        for name in node.output:
            shape = graph.shapes.get(name, ())
            if len(shape) > RANK and not graph.is_constant(name):
                yield rank_problem(node.name, node.op_type, shape, NPU, RANK)


def _node_name(name: str) -> str:
    """Shorten a name of a .tflite, which has the paths of Python modules."""
    return re.sub(r"[\w.]*\.(?=[A-Z])", "", name)
