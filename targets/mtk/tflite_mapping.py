"""Map the operators of a .tflite to the groups of the ONNX graph, by weights and by the paths between them.

A converter fuses, splits, reshapes and renames, but it keeps weights (perhaps in another order) and data flow. An
operator with a group's weights belongs to that group. Any other is identified by the weights that its inputs come from
and those that its outputs lead to. Both graphs must be float and of the same modules.
"""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nightjar.errors import Broken
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_graph import Graph
from targets.mtk.tflite import Model

MINIMUM_SIZE = 16  # smaller constants (scales, epsilons, shapes) identify nothing
UNSORTED_SIZE = 1 << 22  # larger constants are identified without sorting
WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "BATCH_MATMUL", "DEPTHWISE_CONV_2D")
PRODUCTS = ("linear", "conv", "head")

Keys = frozenset[Hashable]  # digests of weights, and numbers of the graph's inputs and outputs


class Position(NamedTuple):
    """The place of a value in the data flow: the nearest weights, inputs and outputs before and behind it."""

    sources: Keys
    destinations: Keys


def match_operators(onnx_model: Any, model: Model) -> dict[str, list[int]]:
    """Return the numbers of the operators that compute each group, by its tensor; moved or folded groups have none.

    Raises Broken for a group whose weights no operator has: the two are not the same graph.
    """
    graph, groups = Graph(onnx_model), fuse(onnx_model)
    weights = {_digest(graph.constant(g.weights[0])): g for g in groups if g.kind in PRODUCTS}
    other = _other_constants(graph, groups)
    positions = _group_positions(graph, groups, {g.tensor: digest for digest, g in weights.items()}, other)
    anchors = _weighted_operators(model, weights)
    anchors |= _scaled_operators(graph, model, weights, anchors)
    if missing := [group.tensor for digest, group in weights.items() if digest not in anchors.values()]:
        raise Broken(
            f"no operator of the .tflite has the weights of {', '.join(missing[:3])}: it is of other graphs, or its "
            "converter changes weights; run the same command with --refresh build"
        )
    by_position = {position: group for group, position in positions}
    found: dict[str, list[int]] = {group.tensor: [] for group in groups}
    for number, position in _operator_positions(model, anchors, set(other.values())).items():
        group = weights[anchors[number]] if number in anchors else by_position.get(position)
        if group is not None and group.kind == "add" and (model.ops[number].op != "ADD" or found[group.tensor]):
            group = None  # an operator behind a sum may belong to the norm that follows
        group = group or _enclosing_group(position, positions)
        if group is not None:
            found[group.tensor].append(number)
    return found


def _enclosing_group(position: Position, positions: Sequence[tuple[Group, Position]]) -> Group | None:
    """Return the nearest group whose sources and destinations include those of a value inside it."""
    around = [
        (len(each.sources) + len(each.destinations), group)
        for group, each in positions
        if group.kind != "add" and position.sources <= each.sources and position.destinations <= each.destinations
    ]
    return min(around, key=lambda entry: entry[0])[1] if around else None


def _other_constants(graph: Graph, groups: Sequence[Group]) -> dict[str, str]:
    """Digest the constants outside products, by name: position tables, gains and offsets of norms."""
    names = {node.name for group in groups if group.kind not in PRODUCTS for node in _nodes(graph, group)}
    inputs = [name for node in graph.nodes if node.name in names for name in node.input if name]
    constants = {name: graph.constant(name) for name in inputs if graph.is_constant(name)}
    return {name: _digest(values) for name, values in constants.items() if values.size >= MINIMUM_SIZE}


def _nodes(graph: Graph, group: Group) -> list[Any]:
    return [node for node in graph.nodes if node.name in group.nodes]


def _group_positions(
    graph: Graph, groups: Sequence[Group], anchored: Mapping[str, str], other: Mapping[str, str]
) -> list[tuple[Group, Position]]:
    """Return the position of every group without weights of its own; anchored: tensor to digest of the others."""
    sources: dict[str, Keys] = {name: frozenset([("in", i)]) for i, name in enumerate(graph.inputs)}
    for group in groups:
        if group.tensor in anchored:
            sources[group.tensor] = frozenset([anchored[group.tensor]])
        else:
            own = {other[name] for node in _nodes(graph, group) for name in node.input if name in other}
            sources[group.tensor] = frozenset().union(own, *(sources.get(name, ()) for name in group.inputs))
    destinations: dict[str, set[Hashable]] = {group.tensor: set() for group in groups}
    for i, name in enumerate(graph.outputs):
        destinations.setdefault(graph.root(name), set()).add(("out", i))
    for group in reversed(groups):
        to = {anchored[group.tensor]} if group.tensor in anchored else destinations[group.tensor]
        for name in group.inputs:
            destinations.setdefault(name, set()).update(to)
    return [
        (group, Position(sources[group.tensor], frozenset(destinations[group.tensor])))
        for group in groups
        if group.tensor not in anchored
    ]


def _weighted_operators(model: Model, weights: Mapping[str, Group]) -> dict[int, str]:
    """Find the operators that multiply by a group's weights: number to digest."""
    digest = _cached_digest(model)
    found = {}
    for number, op in enumerate(model.ops):
        if op.op in WEIGHTED or op.op.startswith("MTKEXT"):
            for tensor in op.inputs[1:]:
                if tensor >= 0 and (key := digest(tensor)) in weights:
                    found[number] = key
    return found


def _scaled_operators(
    graph: Graph, model: Model, weights: Mapping[str, Group], found: Mapping[int, str]
) -> dict[int, str]:
    """Find operators whose weights a converter has multiplied by row or column: norms' gains, constant factors."""
    remaining = {
        digest: graph.constant(group.weights[0]) for digest, group in weights.items() if digest not in found.values()
    }
    result: dict[int, str] = {}
    for number, op in enumerate(model.ops):
        if op.op != "FULLY_CONNECTED" or number in found or (values := model.constant(op.inputs[1])) is None:
            continue
        for digest, original in remaining.items():
            if original.T.shape == values.shape and _is_proportional(values, original.T):
                result[number] = digest
                del remaining[digest]
                break
    return result


def _is_proportional(values: np.ndarray, original: np.ndarray) -> bool:
    """Return whether one matrix is the other with its rows and columns multiplied by factors."""
    row, column = np.abs(original).max(axis=1).argmax(), np.abs(original).max(axis=0).argmax()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / original
        ratio = ratio / ratio[:, column : column + 1] / ratio[row : row + 1] * ratio[row, column]
    ratio = ratio[np.isfinite(ratio)]
    return bool(ratio.size) and bool(np.median(np.abs(ratio - 1)) < 1e-3)


def _operator_positions(model: Model, anchors: Mapping[int, str], other: set[str]) -> dict[int, Position]:
    digest = _cached_digest(model)
    sources: dict[int, Keys] = {tensor: frozenset([("in", i)]) for i, tensor in enumerate(model.inputs)}
    for number, op in enumerate(model.ops):
        if number in anchors:
            before: Keys = frozenset([anchors[number]])
        else:
            own = {key for tensor in op.inputs if tensor >= 0 and (key := digest(tensor)) in other}
            before = frozenset().union(own, *(sources.get(tensor, ()) for tensor in op.inputs))
        sources.update(dict.fromkeys(op.outputs, before))
    destinations: dict[int, set[Hashable]] = {}
    for i, tensor in enumerate(model.outputs):
        destinations.setdefault(tensor, set()).add(("out", i))
    positions = {}
    for number, op in reversed(list(enumerate(model.ops))):
        behind = set().union(*(destinations.get(tensor, ()) for tensor in op.outputs))
        positions[number] = Position(sources[op.outputs[0]], frozenset(behind))
        for tensor in op.inputs:
            destinations.setdefault(tensor, set()).update({anchors[number]} if number in anchors else behind)
    return dict(sorted(positions.items()))


def _cached_digest(model: Model) -> Callable[[int], str]:
    """Return a function from a tensor's number to the digest of its constant, empty where there is none to compare."""
    known: dict[int, str] = {}

    def digest(tensor: int) -> str:
        if tensor not in known:
            values = model.constant(tensor)
            too_few = values is None or values.size < MINIMUM_SIZE or values.dtype not in (np.float32, np.float16)
            known[tensor] = "" if values is None or too_few else _digest(values)
        return known[tensor]

    return digest


def _digest(values: np.ndarray) -> str:
    """Identify values in any order."""
    flat = np.ascontiguousarray(values, np.float32).ravel()
    if flat.size < UNSORTED_SIZE:
        return hashlib.sha256(np.sort(flat).tobytes()).hexdigest()
    return f"{flat.size} {flat.min()} {flat.max()} {float(np.float64(flat).mean()):.9g}"
