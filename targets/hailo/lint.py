"""What the DFC refuses in a graph, rewrites or computes badly, read off the ONNX before it is translated.

Its guide is behind a login and the DFC was not at hand: what it refuses is from public reports (hailocs/hailo-whisper,
hailo_model_zoo #98, fast-plate-ocr #44, community.hailo.ai 9698, 18789, 19530). What is said of a part that the board's
CPU runs is a warning: it holds where `npu` puts that part on the NPU.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import onnx

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_graph import DATA_MOVEMENT, Graph
from nightjar.plugins.lint import Finding, place_of
from targets.hailo.graph import UNSUPPORTED, find_cut
from targets.hailo.known_windows import shorter_window, window_label, window_note
from targets.hailo.options import PlacementOptions
from targets.hailo.placement import read_model

RANK = 4
COLUMNS = 12_967  # of hailo-whisper's vocabulary products, four of 51 865: the widest that is known to compile
LOWEST = -1000.0  # a mask below it takes the whole range of 256 steps
BOTH = ("Add", "Sub", "Mul", "Div")  # of two activations

# Operators that its parser is known to make layers of, alone or in a pattern.
_KNOWN = """
Add AveragePool BatchNormalization Clip Concat Conv ConvTranspose DepthToSpace Div Elu Exp Flatten Gemm
GlobalAveragePool HardSigmoid HardSwish Identity LayerNormalization LeakyRelu MatMul Max MaxPool Min Mul Neg Pad Pow
PRelu ReduceMax ReduceMean ReduceSum Relu Reshape Resize Sigmoid Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze
Sub Tanh Transpose Unsqueeze
"""
KNOWN = frozenset(_KNOWN.split())

LOOK_UP = "the recipe looks tokens and positions up on the CPU (host embedding): the decoder takes the rows themselves"
REMEDIES = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), LOOK_UP),
    "Tile": "the recipe tiles nothing: fixed shapes and a batch of one; repeat values on the CPU, or add by broadcast",
    "TopK": "sort on the CPU: the recipe's graphs end at the logits",
    "ArgMax": "take the maximum on the CPU: the recipe's graphs end at the logits",
    "Cast": "keep to float32: with host embedding, no integer goes to the NPU",
    **dict.fromkeys(("Where", "Greater", "Less", "Equal", "And", "Or", "Not"), "the recipe adds a finite mask instead"),
    **dict.fromkeys(("Shape", "Range", "ConstantOfShape"), "export with fixed shapes, as the recipe does"),
}
ON_CPU = "the board's CPU runs this part, unless --target-options npu= names it"

Level = Literal["refuse", "warn"]


def lint(graphs: Path) -> list[Finding]:
    """List what of a folder of ONNX graphs the DFC refuses or rewrites; raises BadOptions for other formats."""
    model = read_model(graphs, PlacementOptions())
    findings: list[Finding] = []
    for part, entry in model["parts"].items():
        of_part = list(_of_part(part, entry, onnx.load(graphs / entry["file"])))
        if part == "encoder":
            of_part += _window(model, entry["inputs"][0]["name"])
        findings += of_part if _goes(part, model) else _on_cpu(part, entry, of_part)
    return findings


def _goes(part: str, model: Mapping[str, Any]) -> bool:
    """Say whether a part of such graphs is meant for the NPU: the encoder, and what keeps nothing between steps."""
    return part in PlacementOptions().npu or model["recipe"]["decoder"] in ("static", "window")


def _on_cpu(part: str, entry: Mapping[str, Any], findings: list[Finding]) -> Iterator[Finding]:
    """Yield what would be refused of a part that stays on the CPU, as warnings, behind one that says why it stays."""
    kept = [tensor["name"] for tensor in entry["inputs"] if tensor["name"].startswith("self_")]
    if kept:
        why = "it keeps keys and values from step to step, and a HEF keeps nothing"
        remedy = (
            "the recipe leaves it to the board's CPU; for the NPU: --decoder static --decoder-length 32 "
            "--target-options npu=encoder,decoder"
        )
        yield _finding("warn", part, kept[0], "KV cache", why, remedy)
    for found in findings:
        if found.level == "refuse":
            remedy = f"{ON_CPU}: {found.remedy}"
            yield found.model_copy(update={"level": "warn", "remedy": remedy})


def _of_part(part: str, entry: Mapping[str, Any], model: Any) -> Iterator[Finding]:
    graph, groups = Graph(model), fuse(model)
    behind = _behind(part, graph)
    yield from _boundary(part, entry, graph)
    fused = {name: group for group in groups for name in group.nodes if len(group.nodes) > 1}
    for node in graph.nodes:
        if node.name in behind or not graph.activations(node):
            continue
        yield from _operator(part, graph, node, fused)
        yield from _shape(part, graph, node)
    for group in groups:
        yield from _group(part, graph, group)


def _behind(part: str, graph: Graph) -> set[str]:
    """Name the nodes that only move values behind the last layers: they are the host's."""
    try:
        ends = {end.node for end in find_cut(part, graph).ends}
    except BadOptions:  # the finding itself is said below
        return set()
    names: set[str] = set()
    for output in graph.outputs:
        node = graph.producers.get(output)
        while node is not None and node.op_type in DATA_MOVEMENT and node.name not in ends:
            names.add(node.name)
            node = graph.producers.get(node.input[0])
    return names


def _boundary(part: str, entry: Mapping[str, Any], graph: Graph) -> Iterator[Finding]:
    for tensor in (*entry["inputs"], *entry["outputs"]):
        name = tensor["name"]
        if tensor["dtype"] == "int64":
            remedy = "the recipe looks tokens up on the CPU (host embedding): no token or position goes to the NPU"
            yield _finding("refuse", part, name, "input", "64-bit integers; HailoRT's streams have none", remedy)
        if len(tensor["shape"]) > RANK:
            yield _rank(part, name, "input", tuple(tensor["shape"]))
        if 0 in graph.shapes.get(name, ()):
            remedy = "export with fixed shapes: the recipe's window and decoder length"
            yield _finding("refuse", part, name, "input", "a dimension is not fixed", remedy)


def _operator(part: str, graph: Graph, node: Any, fused: Mapping[str, Group]) -> Iterator[Finding]:
    op = node.op_type
    if op in UNSUPPORTED:
        remedy = REMEDIES.get(op, "compute it on the CPU, before the graph or behind it")
        yield _finding("refuse", part, node.name, op, f"the DFC's parser makes no layer of {op}", remedy)
    elif op == "Conv" and len(graph.shapes.get(node.input[0], ())) == 3:
        why = "a convolution over one dimension, of which its parser makes no layer"
        remedy = "the recipe convolves over two, the first of them 1 (conv2d): mel comes as (1, n_mels, 1, n_frames)"
        yield _finding("refuse", part, node.name, "Conv", why, remedy)
    elif op == "LayerNormalization":
        why = "one operator for the norm; public exports that compiled have the primitives it is made of"
        remedy = "the recipe writes means, square root and division (layer_norm primitives), which are known to become "
        yield _finding("warn", part, node.name, op, why, remedy + "a layer_normalization")
    elif op == "Expand":
        why = "values repeated at run time: it becomes a copy per repetition, where it is taken at all"
        yield _finding(
            "warn", part, node.name, op, why, "the recipe's graphs expand nothing: repeat constants at export"
        )
    elif node.name not in fused and op not in KNOWN:
        why = f"{op} is neither among the operators its parser is known to take nor among those it is known to refuse"
        remedy = "Erf: write GELU as x/√2, Erf, +1, ·x, ·½, as torch does" if op == "Erf" else "try a translate alone"
        yield _finding("warn", part, node.name, op, why, remedy)
    if op in BOTH and node.name not in fused:
        yield from _broadcast(part, graph, node)


def _broadcast(part: str, graph: Graph, node: Any) -> Iterator[Finding]:
    """Look at two activations of which one is repeated to meet the other."""
    one, *other = (graph.shapes.get(name, ()) for name in graph.activations(node))
    if other and 0 not in (*one, *other[0]) and one != other[0]:
        why = f"{one} meets {other[0]}: the compiler rewrites the smaller into a layer that repeats it"
        remedy = "the recipe's sums and products are between equals, but for its norms; repeat constants at export"
        yield _finding("warn", part, node.name, node.op_type, why, remedy)


def _shape(part: str, graph: Graph, node: Any) -> Iterator[Finding]:
    """Look at the ranks, and at the first dimension, which is the batch to the DFC."""
    moves = node.op_type in DATA_MOVEMENT
    for name in node.output:
        shape = graph.shapes.get(name, ())
        if len(shape) > RANK:
            yield _rank(part, node.name, node.op_type, shape)
        elif moves and len(shape) > 1 and shape[0] != 1 and graph.shapes.get(node.input[0], (1,))[0] == 1:
            why = f"its parser takes the first of {shape} for a batch, which no layer may change"
            remedy = "keep a leading 1: the recipe's heads are (1, heads, rows, width), which becomes a grouped product"
            yield _finding("refuse", part, node.name, node.op_type, why, remedy)
    if node.op_type == "Unsqueeze" and len(graph.shapes.get(node.input[0], ())) == 2:
        why = "its parser refuses Unsqueeze on a tensor of two dimensions"
        yield _finding("refuse", part, node.name, node.op_type, why, "keep the batch: the recipe's rows are (1, n, d)")


def _group(part: str, graph: Graph, group: Group) -> Iterator[Finding]:
    """Look at what the compiler takes as one: products that are too wide, attention that it rewrites."""
    node = graph.producers[graph.root(group.tensor)] if group.kind == "attention" else None
    if group.kind in ("linear", "head"):
        columns = graph.shape(group.tensor)[-1]
        if columns > COLUMNS:
            slices = math.ceil(columns / COLUMNS)
            why = f"a product of {columns} columns; the widest that is known to compile has {COLUMNS}"
            remedy = (
                f"the recipe splits a static decoder's vocabulary (logits_slices): {slices} slices or more; "
                "the host puts them side by side"
            )
            yield _finding("refuse", part, group.nodes[0], "MatMul", why, remedy)
    if node is not None:
        why = (
            "Reshape and Transpose to heads and back are rewritten into products in groups and a softmax by groups, "
            "which are kept in 8 bits: 16 are reported to be refused there"
        )
        remedy = (
            "the recipe multiplies the values by 1.0 for its parser (value_by_one), and keeps (1, heads, rows, width)"
        )
        yield _finding("warn", part, group.nodes[0], "attention", why, remedy)
        lowest = _lowest(graph, group)
        if lowest < LOWEST:
            why = f"a mask of {lowest:g} is added to the scores: in 8 bits it leaves them no steps"
            yield _finding("warn", part, group.nodes[0], "Add", why, "the recipe's masks add -100 (mask_value)")


def _lowest(graph: Graph, group: Group) -> float:
    """Return the lowest constant that is added inside an attention, 0 where there is none."""
    nodes = (graph.producers[name] for name in (graph.root(inner) for inner in group.inner))
    sums = [node for node in nodes if node.op_type == "Add"]
    constants = [graph.constant(name) for node in sums for name in node.input if graph.is_constant(name)]
    return min((float(values.min()) for values in constants), default=0.0)


def _window(model: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """Say of a window that it may not fit; only Whisper has one."""
    if "n_frames" not in model:
        return
    label = window_label(model)
    if not label["known_to_fit"]:
        why = window_note(model)
        remedy = f"the recipe tries it; where the compiler finds no place for it, {shorter_window(model)}"
        yield _finding("warn", "encoder", name, "window", why, remedy)


def _rank(part: str, name: str, op: str, shape: tuple[int, ...]) -> Finding:
    why = f"a tensor of {len(shape)} dimensions {shape}; its layers have {RANK} at most"
    return _finding("refuse", part, name, op, why, "reshape it to four: the recipe's attention splits heads so")


def _finding(level: Level, part: str, node: str, op: str, why: str, remedy: str) -> Finding:
    return Finding(level=level, part=part, node=node, op=op, place=place_of(node), why=why, remedy=remedy)
