"""List what the DFC refuses, rewrites or computes inexactly in a graph, from the ONNX before it is translated.

Sources: public reports (hailocs/hailo-whisper, hailo_model_zoo #98, fast-plate-ocr #44, community.hailo.ai 9698, 18789,
19530). Findings for a part on the board's CPU are warnings: the option `npu` may put it on the NPU.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_file import load_model
from nightjar.graphs.onnx_graph import DATA_MOVEMENT, Graph
from nightjar.plugins.lint import Finding, Problem, boundary_problems, findings_of, rank_problem
from targets.hailo.graph import UNSUPPORTED, find_cut
from targets.hailo.known_windows import shorter_window, window_label, window_note
from targets.hailo.options import PlacementOptions
from targets.hailo.placement import read_model

NPU = "the Hailo-8L"
RANK = 4
COLUMNS = 12_967  # the widest product known to compile: hailo-whisper's vocabulary of 51 865 in four slices
LOWEST_MASK = -1000.0  # a lower mask takes the whole range of 256 steps

# Operators that the parser is known to take, alone or in a pattern.
_KNOWN = """
Add AveragePool BatchNormalization Clip Concat Conv ConvTranspose DepthToSpace Div Elu Exp Flatten Gemm
GlobalAveragePool HardSigmoid HardSwish Identity LayerNormalization LeakyRelu MatMul Max MaxPool Min Mul Neg Pad Pow
PRelu ReduceMax ReduceMean ReduceSum Relu Reshape Resize Sigmoid Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze
Sub Tanh Transpose Unsqueeze
"""
KNOWN = frozenset(_KNOWN.split())

LOOK_UP = "the recipe looks tokens and positions up on the CPU (host embedding): the decoder takes their embeddings"
REMEDIES = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), LOOK_UP),
    "Tile": "repeat values on the CPU, or add by broadcast: the recipe has fixed shapes and a batch of one",
    "Erf": "write GELU as x/√2, Erf, +1, ·x, ·½, as torch does",
    "TopK": "sort on the CPU: the recipe's graphs end at the logits",
    "ArgMax": "take the maximum on the CPU: the recipe's graphs end at the logits",
    "Cast": "use float32: with host embedding, no integer goes to the NPU",
    **dict.fromkeys(("Where", "Greater", "Less", "Equal", "And", "Or", "Not"), "the recipe adds a finite mask instead"),
    **dict.fromkeys(("Shape", "Range", "ConstantOfShape"), "export with fixed shapes, as the recipe does"),
}
# Operators that are taken with a reservation: why, and the remedy.
INEXACT = {
    "LayerNormalization": (
        "one operator for the norm; public exports that compiled have its primitives",
        "the recipe writes means, square root and division (layer_norm primitives), which have compiled",
    ),
    "Expand": (
        "values are repeated at run time, which becomes a copy per repetition where it is taken at all",
        "repeat constants at export: the recipe's graphs have no Expand",
    ),
}
ONE_DIMENSION = (
    "a convolution over one dimension, which the parser does not support",
    "the recipe convolves over two, the first of them 1 (conv2d): mel is (1, n_mels, 1, n_frames)",
)
ATTENTION = (
    "Reshape and Transpose to heads and back are rewritten into grouped products and a grouped softmax in 8 bits: 16 "
    "bits are reported to be refused there",
    "the recipe multiplies the values by 1.0 for the parser (value_by_one), and keeps (1, heads, rows, width)",
)


def lint(graphs: Path) -> list[Finding]:
    """List what the DFC refuses or rewrites in a folder of ONNX graphs; raises BadOptions for other formats."""
    model = read_model(graphs, PlacementOptions())
    found: list[Finding] = []
    for part, entry in model["parts"].items():
        problems = list(_part_problems(part, entry, load_model(graphs / entry["file"])))
        if part == "encoder" and "n_frames" in model and not window_label(model)["known_to_fit"]:
            remedy = f"try it; where the compiler finds no placement, {shorter_window(model)}"
            problems.append(Problem("warn", entry["inputs"][0]["name"], "window", window_note(model), remedy))
        on_npu = part in PlacementOptions().npu or model["recipe"]["decoder"] in ("static", "window")
        found += findings_of(part, problems if on_npu else _cpu_problems(entry, problems))
    return found


def _cpu_problems(entry: Mapping[str, Any], problems: list[Problem]) -> Iterator[Problem]:
    """Yield the refusals of a part on the CPU as warnings, after one with the reason why it stays there."""
    cache = [tensor["name"] for tensor in entry["inputs"] if tensor["name"].startswith("self_")]
    if cache:
        why = "the part keeps keys and values from step to step, and a .hef has no state"
        remedy = (
            "the recipe leaves it to the board's CPU; for the NPU: --decoder static --decoder-length 32 "
            "--target-options npu=encoder,decoder"
        )
        yield Problem("warn", cache[0], "KV cache", why, remedy)
    for problem in problems:
        if problem.level == "refuse":
            where = "the board's CPU runs this part, unless --target-options npu= names it"
            yield problem._replace(level="warn", remedy=f"{where}: {problem.remedy}")


def _part_problems(part: str, entry: Mapping[str, Any], model: Any) -> Iterator[Problem]:
    graph, groups = Graph(model), fuse(model)
    on_host: set[str] = set()  # the moves behind the last layers
    with contextlib.suppress(BadOptions):  # an operator that is reported as a problem of its own
        on_host = {name for end in find_cut(part, graph) for name in end.move_nodes}
    yield from boundary_problems(entry, graph.shapes, NPU, RANK)
    fused = {name for group in groups for name in group.nodes if len(group.nodes) > 1}
    for node in graph.nodes:
        if node.name not in on_host and graph.activations(node):
            yield from _operator_problems(graph, node, node.name in fused)
            yield from _shape_problems(graph, node)
    for group in groups:
        yield from _group_problems(graph, group)


def _operator_problems(graph: Graph, node: Any, is_fused: bool) -> Iterator[Problem]:
    op = node.op_type
    if op in UNSUPPORTED:
        remedy = REMEDIES.get(op, "compute it on the CPU, before the graph or behind it")
        yield Problem("refuse", node.name, op, f"the DFC's parser does not support {op}", remedy)
    elif op == "Conv" and len(graph.shapes.get(node.input[0], ())) == 3:
        yield Problem("refuse", node.name, op, *ONE_DIMENSION)
    elif op in INEXACT:
        yield Problem("warn", node.name, op, *INEXACT[op])
    elif not is_fused and op not in KNOWN:
        why = f"{op} is in neither list of operators, those that the parser takes and those that it refuses"
        yield Problem("warn", node.name, op, why, REMEDIES.get(op, "run the translate step alone"))
    if op in ("Add", "Sub", "Mul", "Div") and not is_fused:
        one, *other = (graph.shapes.get(name, ()) for name in graph.activations(node))
        if other and 0 not in (*one, *other[0]) and one != other[0]:
            why = f"{one} meets {other[0]}: the compiler adds a layer that repeats the smaller one"
            remedy = "repeat constants at export: the recipe's sums and products, except norms, have equal shapes"
            yield Problem("warn", node.name, op, why, remedy)


def _shape_problems(graph: Graph, node: Any) -> Iterator[Problem]:
    """Check ranks, and the first dimension, which the DFC takes for the batch."""
    moves = node.op_type in DATA_MOVEMENT
    for name in node.output:
        shape = graph.shapes.get(name, ())
        if len(shape) > RANK:
            yield rank_problem(node.name, node.op_type, shape, NPU, RANK)
        elif moves and len(shape) > 1 and shape[0] != 1 and graph.shapes.get(node.input[0], (1,))[0] == 1:
            why = f"the parser takes the first dimension of {shape} for a batch, which no layer may change"
            remedy = "keep a leading 1: the recipe's heads are (1, heads, rows, width), which becomes a grouped product"
            yield Problem("refuse", node.name, node.op_type, why, remedy)
    if node.op_type == "Unsqueeze" and len(graph.shapes.get(node.input[0], ())) == 2:
        why = "the parser refuses Unsqueeze on a tensor of two dimensions"
        yield Problem("refuse", node.name, node.op_type, why, "keep the batch: the recipe's rows are (1, n, d)")


def _group_problems(graph: Graph, group: Group) -> Iterator[Problem]:
    """Check groups that become one layer: wide products, and attention, which the compiler rewrites."""
    if group.kind in ("linear", "head") and (columns := graph.shape(group.tensor)[-1]) > COLUMNS:
        why = f"a product of {columns} columns; the widest that is known to compile has {COLUMNS}"
        slices = f"{math.ceil(columns / COLUMNS)} slices or more; the host joins them"
        remedy = f"the recipe splits a static decoder's vocabulary (logits_slices) into {slices}"
        yield Problem("refuse", group.nodes[0], "MatMul", why, remedy)
    if group.kind == "attention":
        yield Problem("warn", group.nodes[0], "attention", *ATTENTION)
        inner = [graph.producers[graph.root(name)] for name in group.inner]
        added = {name for node in inner if node.op_type == "Add" for name in node.input if graph.is_constant(name)}
        lowest = min((float(graph.constant(name).min()) for name in added), default=0.0)
        if lowest < LOWEST_MASK:
            why = f"a mask of {lowest:g} is added to the scores: in 8 bits it leaves no steps for them"
            yield Problem("warn", group.nodes[0], "Add", why, "the recipe's masks add -100 (mask_value)")
