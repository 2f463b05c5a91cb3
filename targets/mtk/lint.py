"""List the operators of a graph that MDLA 5.3 lacks.

Where the stand-in's converter is installed, it converts each part to .tflite and that is checked. Without it the ONNX
graph is checked, whose operators mostly become TFLite's of the same name. The operators of the NPU are those of
NeuroPilot 8.0.10's list (superLin006/MTK_model_zoo); those in neither list below are unknown.
"""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from nightjar.errors import ToolchainMissing
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.lint import Finding, Problem, boundary_problems, findings_of, int64_problem, rank_problem
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.graphs import PartGraph, read_model
from targets.mtk.stand_in.toolchain import compile as inside
from targets.mtk.tflite import Model, read

log = logging.getLogger(__name__)

TOOLCHAIN = "mtk.stand_in"
CONVERT_S = 1800.0
NPU = "MDLA 5.3"
RANK = 4

LOOK_UP = (
    "MDLA 5.3 has no look-up: there is no GATHER on the NPU",
    ("the recipe looks tokens and positions up on the CPU (host embedding): the decoder takes the rows themselves"),
)
COMPARE = "MDLA 5.3 has no comparison and no logical operator", "the recipe adds masks as numbers"
CHOOSE = "MDLA 5.3 has no conditional selection", "the recipe adds a finite mask (-10000) instead"
SORT = "MDLA 5.3 has no sorting", "decode on the CPU, from the logits"
LOGARITHM = "MDLA 5.3 has no logarithm", "take the logarithm on the CPU; the argmax needs none"
ROUNDING = "MDLA 5.3 has no rounding to integers", "compute indices and positions on the CPU"
MAKE = "MDLA 5.3 does not create tensors", "export with fixed shapes, so that it becomes a constant"
RUNNING = "MDLA 5.3 has no cumulative sum", "multiply by a triangular matrix of ones"
REFUSED: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("GATHER", "GATHER_ND", "EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP_SPARSE", "HASHTABLE_LOOKUP"), LOOK_UP
    ),
    **dict.fromkeys(("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"), COMPARE),
    **dict.fromkeys(("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "REDUCE_ANY", "REDUCE_ALL"), COMPARE),
    **dict.fromkeys(("SELECT", "SELECT_V2", "WHERE"), CHOOSE),
    **dict.fromkeys(("TOPK_V2", "ARG_MAX", "ARG_MIN"), SORT),
    **dict.fromkeys(("LOG", "LOG_SOFTMAX"), LOGARITHM),
    **dict.fromkeys(("FLOOR", "CEIL", "ROUND", "FLOOR_DIV", "FLOOR_MOD"), ROUNDING),
    **dict.fromkeys(("FILL", "RANGE", "SHAPE", "ONE_HOT"), MAKE),
    "CUMSUM": RUNNING,
    "LEAKY_RELU": ("MDLA 5.3 has no LEAKY_RELU", "write it as two RELUs and a sum"),
}
_KNOWN = """
ADD AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV FULLY_CONNECTED GELU LOGISTIC
MAXIMUM MEAN MINIMUM MUL PAD PADV2 QUANTIZE RELU RESHAPE RSQRT SLICE SOFTMAX SPLIT SQRT SQUARED_DIFFERENCE SQUEEZE
STRIDED_SLICE SUB SUM TANH TRANSPOSE
"""
KNOWN = frozenset(_KNOWN.split())
ONNX = {
    **{"Gather": "GATHER", "GatherND": "GATHER_ND", "GatherElements": "GATHER", "Equal": "EQUAL", "Less": "LESS"},
    **{"LessOrEqual": "LESS_EQUAL", "Greater": "GREATER", "GreaterOrEqual": "GREATER_EQUAL", "Where": "SELECT_V2"},
    **{"And": "LOGICAL_AND", "Or": "LOGICAL_OR", "Not": "LOGICAL_NOT", "TopK": "TOPK_V2", "ArgMax": "ARG_MAX"},
    **{"Log": "LOG", "LogSoftmax": "LOG_SOFTMAX", "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND", "Range": "RANGE"},
    **{"CumSum": "CUMSUM", "LeakyRelu": "LEAKY_RELU", "ConstantOfShape": "FILL", "Shape": "SHAPE", "OneHot": "ONE_HOT"},
}


def lint(graphs: Path) -> list[Finding]:
    """List what the NPU refuses in a folder of ONNX graphs; raises BadOptions and the toolchain's errors."""
    model = read_model(graphs)
    try:
        stand_in: Toolchain | None = toolchain(TOOLCHAIN)
    except ToolchainMissing:
        stand_in = None
        log.warning(
            "this checks the ONNX graphs; with `nightjar toolchain install %s` it checks real .tflite files",
            TOOLCHAIN,
        )
    converted = _converted(stand_in, graphs, model) if stand_in is not None else {}
    found = []
    for part, entry in model["parts"].items():
        graph = Graph(onnx.load(graphs / entry["file"]))
        found += findings_of(part, boundary_problems(entry, graph.shapes, NPU, RANK))
        found += findings_of(part, _shape_problems(graph))
        found += of_tflite(part, converted[part]) if part in converted else findings_of(part, _onnx_problems(graph))
    return found


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


def _onnx_problems(graph: Graph) -> Iterator[Problem]:
    """Yield the operators of an ONNX graph that become ones that the NPU lacks."""
    for node in graph.nodes:
        if node.op_type in ONNX and graph.activations(node):
            yield Problem("refuse", node.name, node.op_type, *REFUSED[ONNX[node.op_type]])


def _shape_problems(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        for name in node.output:
            shape = graph.shapes.get(name, ())
            if len(shape) > RANK and not graph.is_constant(name):
                yield rank_problem(node.name, node.op_type, shape, NPU, RANK)


def _node_name(name: str) -> str:
    """Shorten a name of a .tflite, which has the paths of Python modules."""
    return re.sub(r"[\w.]*\.(?=[A-Z])", "", name)


def _converted(found: Toolchain, graphs: Path, model: Mapping[str, Any]) -> dict[str, Model]:
    """Convert each part to .tflite, as the stand-in does."""
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        weights = [PartGraph(graphs, model, part).write_weights(folder) for part in model["parts"]]
        found.call(inside.__name__, {"kind": "convert", "to_quantize": False, "parts": weights}, folder, CONVERT_S)
        return {part: read(folder / f"{part}.tflite") for part in model["parts"]}
