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
from nightjar.plugins.lint import Finding, place_of
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.graphs import PartGraph, read_model
from targets.mtk.stand_in.toolchain import compile as inside
from targets.mtk.tflite import Model, read

log = logging.getLogger(__name__)

TOOLCHAIN = "mtk.stand_in"
CONVERT_S = 1800.0
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
        found: Toolchain | None = toolchain(TOOLCHAIN)
    except ToolchainMissing:
        found = None
        log.warning(
            "this checks the ONNX graphs; with `nightjar toolchain install %s` it checks real .tflite files",
            TOOLCHAIN,
        )
    converted = _converted(found, graphs, model) if found is not None else {}
    findings = []
    for part, entry in model["parts"].items():
        findings += list(_boundary(part, entry))
        graph = Graph(onnx.load(graphs / entry["file"]))
        findings += list(_shapes(part, graph))
        findings += list(of_tflite(part, converted[part]) if part in converted else of_onnx(part, graph))
    return findings


def of_tflite(part: str, model: Model) -> Iterator[Finding]:
    """Yield the operators and tensors of a .tflite file that the NPU lacks."""
    for op in model.ops:
        name = model.tensors[op.outputs[0]].name if op.outputs else op.op
        yield from _operator(part, op.op, name)
        for tensor in (model.tensors[number] for number in op.outputs):
            if len(tensor.shape) > RANK:
                yield _rank(part, op.op, tensor.name, tensor.shape)
            if tensor.dtype == "int64":
                yield _wide(part, op.op, tensor.name)


def of_onnx(part: str, graph: Graph) -> Iterator[Finding]:
    """Yield the operators of an ONNX graph that become ones that the NPU lacks."""
    for node in graph.nodes:
        if node.op_type in ONNX and graph.activations(node):
            why, remedy = REFUSED[ONNX[node.op_type]]
            yield _finding("refuse", part, node.name, node.op_type, why, remedy)


def _operator(part: str, op: str, name: str) -> Iterator[Finding]:
    if op in REFUSED:
        yield _finding("refuse", part, name, op, *REFUSED[op])
    elif op not in KNOWN and not op.startswith("MTKEXT_"):
        why = "it is in neither list of operators, those that MDLA 5.3 has and those that it lacks"
        yield _finding("warn", part, name, op, why, "look for it in the execution plan after compiling")


def _boundary(part: str, entry: Mapping[str, Any]) -> Iterator[Finding]:
    """Check inputs and outputs as exported: a converter may narrow integers that the host still passes."""
    for tensor in (*entry["inputs"], *entry["outputs"]):
        if tensor["dtype"] == "int64":
            yield _wide(part, "input", tensor["name"])
        if len(tensor["shape"]) > RANK:
            yield _rank(part, "input", tensor["name"], tuple(tensor["shape"]))


def _shapes(part: str, graph: Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        for name in node.output:
            shape = graph.shapes.get(name, ())
            if len(shape) > RANK and not graph.is_constant(name):
                yield _rank(part, node.op_type, node.name, shape)
    for name in graph.inputs:
        if 0 in graph.shapes.get(name, (0,)):
            why, remedy = "a dimension is not fixed", "export with fixed shapes: the recipe's window and decoder length"
            yield _finding("refuse", part, name, "input", why, remedy)


def _rank(part: str, op: str, name: str, shape: tuple[int, ...]) -> Finding:
    why = f"a tensor of {len(shape)} dimensions {shape}; MDLA 5.3 takes {RANK} at most"
    return _finding("refuse", part, name, op, why, "reshape it to four: the recipe's attention splits heads so")


def _wide(part: str, op: str, name: str) -> Finding:
    remedy = "the recipe looks tokens up on the CPU (host embedding): no token or position goes to the NPU"
    return _finding("refuse", part, name, op, "64-bit integers; the NPU has none", remedy)


def _finding(level: str, part: str, node: str, op: str, why: str, remedy: str) -> Finding:
    node = re.sub(r"[\w.]*\.(?=[A-Z])", "", node)  # a .tflite names tensors by paths of Python modules
    return Finding.model_validate(
        {"level": level, "part": part, "node": node, "op": op, "place": place_of(node), "why": why, "remedy": remedy}
    )


def _converted(found: Toolchain, graphs: Path, model: Mapping[str, Any]) -> dict[str, Model]:
    """Convert each part to .tflite, as the stand-in does."""
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        weights = [PartGraph(graphs, model, part).write_weights(folder) for part in model["parts"]]
        found.call(inside.__name__, {"kind": "convert", "to_quantize": False, "parts": weights}, folder, CONVERT_S)
        return {part: read(folder / f"{part}.tflite") for part in model["parts"]}
