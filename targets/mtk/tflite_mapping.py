"""Which operators of a .tflite are which groups of the ONNX graph: told by weights and by what lies between them.

A converter fuses, splits, reshapes and names as it likes, but it keeps weights (perhaps in another order) and the way
that values take. So operators with a group's weights are that group, and everything else is known by which of those it
comes from and which it leads to. The two graphs must be float and of the same modules.
"""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from nightjar.errors import Broken
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_graph import Graph
from targets.mtk.tflite import Model

FEW = 16  # values of a constant that tell nothing: scales, epsilons, shapes
LARGE = 1 << 22  # values that are not worth sorting
WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "BATCH_MATMUL", "DEPTHWISE_CONV_2D")

Sign = tuple[frozenset[Hashable], frozenset[Hashable]]  # what a value comes from, what it leads to


def match(onnx_model: Any, model: Model) -> dict[str, list[int]]:
    """Return, by a group's tensor, the numbers of the operators that compute it; groups may have none (moved, folded).

    Raises Broken for a group with weights that no operator has: these are not two forms of one graph.
    """
    graph, groups = Graph(onnx_model), fuse(onnx_model)
    weights = {_digest(graph.constant(g.weights[0])): g for g in groups if g.kind in ("linear", "conv", "head")}
    loose = _loose(graph, groups)
    signs = _onnx_signs(graph, groups, {g.tensor: digest for digest, g in weights.items()}, loose)
    anchors = _anchors(model, weights)
    anchors |= _scaled(graph, model, weights, anchors)
    if missing := [group.tensor for digest, group in weights.items() if digest not in anchors.values()]:
        raise Broken(
            f"no operator of the .tflite has the weights of {', '.join(missing[:3])}: it is of other graphs, or its "
            "converter changes weights; run the same command with --refresh build"
        )
    by_sign = {sign: group for group, sign in signs}
    found: dict[str, list[int]] = {group.tensor: [] for group in groups}
    for number, sign in _tflite_signs(model, anchors, set(loose.values())).items():
        group = weights[anchors[number]] if number in anchors else by_sign.get(sign)
        if group is not None and group.kind == "add" and (model.ops[number].op != "ADD" or found[group.tensor]):
            group = None  # what follows a sum on its only way may be the norm behind it
        group = group or _inside(sign, signs)
        if group is not None:
            found[group.tensor].append(number)
    return found


def _inside(sign: Sign, signs: Sequence[tuple[Group, Sign]]) -> Group | None:
    """Find the group that a value is on its way to: it comes from no more, leads to no more, and is the nearest."""
    around = [
        (len(up) + len(down), group)
        for group, (up, down) in signs
        if group.kind != "add" and sign[0] <= up and sign[1] <= down
    ]
    return min(around, key=lambda entry: entry[0])[1] if around else None


def _loose(graph: Graph, groups: Sequence[Group]) -> dict[str, str]:
    """Digest the constants that are no product's: position tables, gains and offsets of norms; by initializer."""
    found = {}
    for group in groups:
        if group.kind in ("linear", "conv", "head"):
            continue
        for node in (n for n in graph.nodes if n.name in group.nodes):
            for name in node.input:
                if name and graph.is_constant(name) and graph.constant(name).size >= FEW:
                    found[name] = _digest(graph.constant(name))
    return found


def _onnx_signs(
    graph: Graph, groups: Sequence[Group], anchored: Mapping[str, str], loose: Mapping[str, str]
) -> list[tuple[Group, Sign]]:
    up: dict[str, frozenset[Hashable]] = {name: frozenset([("in", i)]) for i, name in enumerate(graph.inputs)}
    for group in groups:
        if group.tensor in anchored:
            up[group.tensor] = frozenset([anchored[group.tensor]])
            continue
        nodes = [n for n in graph.nodes if n.name in group.nodes]
        own = {loose[name] for node in nodes for name in node.input if name in loose}
        up[group.tensor] = frozenset().union(own, *(up.get(name, frozenset()) for name in group.inputs))
    down: dict[str, set[Hashable]] = {group.tensor: set() for group in groups}
    for i, name in enumerate(graph.outputs):
        down.setdefault(graph.root(name), set()).add(("out", i))
    for group in reversed(groups):
        to: set[Hashable] = {anchored[group.tensor]} if group.tensor in anchored else down[group.tensor]
        for name in group.inputs:
            down.setdefault(name, set()).update(to)
    return [(g, (up[g.tensor], frozenset(down[g.tensor]))) for g in groups if g.tensor not in anchored]


def _anchors(model: Model, weights: Mapping[str, Group]) -> dict[int, str]:
    """Find the operators that multiply by a group's weights."""
    digest = _remembered(model)
    found = {}
    for number, op in enumerate(model.ops):
        if op.op in WEIGHTED or op.op.startswith("MTKEXT"):
            for tensor in op.inputs[1:]:
                if tensor >= 0 and (key := digest(tensor)) in weights:
                    found[number] = key
    return found


def _scaled(graph: Graph, model: Model, weights: Mapping[str, Group], found: Mapping[int, str]) -> dict[int, str]:
    """Find operators whose weights a converter has multiplied by row and by column: norms' gains, constant factors."""
    left = {
        digest: graph.constant(group.weights[0]) for digest, group in weights.items() if digest not in found.values()
    }
    result: dict[int, str] = {}
    for number, op in enumerate(model.ops):
        if op.op != "FULLY_CONNECTED" or number in found or (values := model.constant(op.inputs[1])) is None:
            continue
        for digest, wanted in left.items():
            if wanted.T.shape == values.shape and _proportional(values, wanted.T):
                result[number] = digest
                del left[digest]
                break
    return result


def _proportional(values: np.ndarray, wanted: np.ndarray) -> bool:
    """Say whether one matrix is the other with its rows and columns multiplied by factors."""
    rows, columns = np.abs(wanted).max(axis=1).argmax(), np.abs(wanted).max(axis=0).argmax()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / wanted
        ratio = ratio / ratio[:, columns : columns + 1] / ratio[rows : rows + 1] * ratio[rows, columns]
    ratio = ratio[np.isfinite(ratio)]
    return bool(ratio.size) and bool(np.median(np.abs(ratio - 1)) < 1e-3)


def _tflite_signs(model: Model, anchors: Mapping[int, str], loose: set[str]) -> dict[int, Sign]:
    digest = _remembered(model)
    up: dict[int, frozenset[Hashable]] = {tensor: frozenset([("in", i)]) for i, tensor in enumerate(model.inputs)}
    for number, op in enumerate(model.ops):
        if number in anchors:
            came: frozenset[Hashable] = frozenset([anchors[number]])
        else:
            own = {key for tensor in op.inputs if tensor >= 0 and (key := digest(tensor)) in loose}
            came = frozenset().union(own, *(up.get(tensor, frozenset()) for tensor in op.inputs))
        for tensor in op.outputs:
            up[tensor] = came
    down: dict[int, set[Hashable]] = {}
    for i, tensor in enumerate(model.outputs):
        down.setdefault(tensor, set()).add(("out", i))
    signs = {}
    for number, op in reversed(list(enumerate(model.ops))):
        leads = set().union(*(down.get(tensor, set()) for tensor in op.outputs))
        signs[number] = (up[op.outputs[0]], frozenset(leads))
        for tensor in op.inputs:
            down.setdefault(tensor, set()).update({anchors[number]} if number in anchors else leads)
    return dict(sorted(signs.items()))


def _remembered(model: Model) -> Callable[[int], str]:
    known: dict[int, str] = {}

    def digest(tensor: int) -> str:
        if tensor not in known:
            values = model.constant(tensor)
            few = values is None or values.size < FEW or values.dtype not in (np.float32, np.float16)
            known[tensor] = "" if few or values is None else _digest(values)
        return known[tensor]

    return digest


def _digest(values: np.ndarray) -> str:
    """Name values whatever their order."""
    flat = np.ascontiguousarray(values, np.float32).ravel()
    if flat.size < LARGE:
        return hashlib.sha256(np.sort(flat).tobytes()).hexdigest()
    return f"{flat.size} {flat.min()} {flat.max()} {float(np.float64(flat).mean()):.9g}"
