"""Map the operators of a .tflite to the groups of the ONNX graph, by weights and by the paths between them.

A converter fuses, splits, reshapes and renames, but it keeps weights (perhaps in another order) and data flow. An
operator with a group's weights belongs to that group. Any other is identified by the weights that its inputs come from
and those that its outputs lead to. Both graphs must be float and of the same modules.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
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


class Step(NamedTuple):
    """A group or an operator in the data flow: the tensors that it reads and writes, and what identifies it."""

    inputs: Sequence[Hashable]
    outputs: Sequence[Hashable]
    weights: str | None  # their digest
    other: set[str]  # digests of the other constants that it reads


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
    digests = _constant_digests(model)
    anchors = _weighted_operators(model, digests, weights)
    anchors |= _scaled_operators(graph, model, weights, anchors)
    if missing := [group.tensor for digest, group in weights.items() if digest not in anchors.values()]:
        raise Broken(
            f"no operator of the .tflite has the weights of {', '.join(missing[:3])}: it is of other graphs, or its "
            "converter changes weights; run the same command with --refresh build"
        )
    steps = _group_steps(graph, groups, {group.tensor: digest for digest, group in weights.items()})
    placed = zip(groups, steps, _positions(steps, graph.inputs, list(map(graph.root, graph.outputs))), strict=True)
    positions = [(group, position) for group, step, position in placed if step.weights is None]
    by_position = {position: group for group, position in positions}
    other = {digest for step in steps for digest in step.other}
    operators = [
        Step(op.inputs, op.outputs, anchors.get(number), {digests[t] for t in op.inputs if t in digests} & other)
        for number, op in enumerate(model.ops)
    ]
    found: dict[str, list[int]] = {group.tensor: [] for group in groups}
    for number, position in enumerate(_positions(operators, model.inputs, model.outputs)):
        group = weights[anchors[number]] if number in anchors else by_position.get(position)
        if group is not None and group.kind == "add" and (model.ops[number].op != "ADD" or found[group.tensor]):
            group = None  # an operator behind a sum may belong to the norm that follows
        group = group or _enclosing_group(position, positions)
        if group is not None:
            found[group.tensor].append(number)
    return found


def _group_steps(graph: Graph, groups: Sequence[Group], weights: Mapping[str, str]) -> list[Step]:
    """Return the steps of groups; weights: digest by tensor. Position tables, gains and offsets are other constants."""
    steps = []
    for group in groups:
        names = {name for node in graph.nodes if node.name in group.nodes for name in node.input}
        constants = [graph.constant(name) for name in names if graph.is_constant(name) and group.kind not in PRODUCTS]
        other = {_digest(values) for values in constants if values.size >= MINIMUM_SIZE}
        steps.append(Step(group.inputs, [group.tensor], weights.get(group.tensor), other))
    return steps


def _positions(steps: Sequence[Step], inputs: Sequence[Hashable], outputs: Sequence[Hashable]) -> list[Position]:
    """Return the position of each step of a graph with these inputs and outputs."""
    sources: dict[Hashable, Keys] = {name: frozenset([("in", i)]) for i, name in enumerate(inputs)}
    for step in steps:
        before = frozenset(step.other).union(*(sources.get(name, ()) for name in step.inputs))
        sources.update(dict.fromkeys(step.outputs, frozenset([step.weights]) if step.weights else before))
    behind: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    for i, name in enumerate(outputs):
        behind[name].add(("out", i))
    positions = []
    for step in reversed(steps):
        destinations = set[Hashable]().union(*(behind[name] for name in step.outputs))
        positions.append(Position(sources[step.outputs[0]], frozenset(destinations)))
        for name in step.inputs:
            behind[name] |= {step.weights} if step.weights else destinations
    return positions[::-1]


def _enclosing_group(position: Position, positions: Sequence[tuple[Group, Position]]) -> Group | None:
    """Return the nearest group whose sources and destinations include those of a value inside it."""
    around = [
        (len(each.sources) + len(each.destinations), group)
        for group, each in positions
        if group.kind != "add" and position.sources <= each.sources and position.destinations <= each.destinations
    ]
    return min(around, key=lambda entry: entry[0])[1] if around else None


def _constant_digests(model: Model) -> dict[int, str]:
    """Digest the constants of a .tflite that are large enough to identify something, by tensor."""
    constants = {number: model.constant(number) for number in range(len(model.tensors))}
    return {
        number: _digest(values)
        for number, values in constants.items()
        if values is not None and values.size >= MINIMUM_SIZE and values.dtype in (np.float32, np.float16)
    }


def _weighted_operators(model: Model, digests: Mapping[int, str], weights: Mapping[str, Group]) -> dict[int, str]:
    """Find the operators that multiply by a group's weights: number to digest."""
    return {
        number: digests[tensor]
        for number, op in enumerate(model.ops)
        if op.op in WEIGHTED or op.op.startswith("MTKEXT")
        for tensor in op.inputs[1:]
        if digests.get(tensor) in weights
    }


def _scaled_operators(
    graph: Graph, model: Model, weights: Mapping[str, Group], found: Mapping[int, str]
) -> dict[int, str]:
    """Find operators whose weights a converter has multiplied by row or column: norms' gains, constant factors."""
    remaining = {key: graph.constant(group.weights[0]).T for key, group in weights.items() if key not in found.values()}
    result: dict[int, str] = {}
    for number, op in enumerate(model.ops):
        if op.op == "FULLY_CONNECTED" and number not in found:
            values = model.constant(op.inputs[1])
            key = next((key for key, original in remaining.items() if _is_proportional(values, original)), None)
            if key is not None:
                result[number] = key
                del remaining[key]
    return result


def _is_proportional(values: np.ndarray | None, original: np.ndarray) -> bool:
    """Return whether one matrix is the other with its rows and columns multiplied by factors."""
    if values is None or values.shape != original.shape:
        return False
    row, column = np.abs(original).max(axis=1).argmax(), np.abs(original).max(axis=0).argmax()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / original
        ratio = ratio / ratio[:, column : column + 1] / ratio[row : row + 1] * ratio[row, column]
    ratio = ratio[np.isfinite(ratio)]
    return bool(ratio.size) and bool(np.median(np.abs(ratio - 1)) < 1e-3)


def _digest(values: np.ndarray) -> str:
    """Identify values in any order."""
    flat = np.ascontiguousarray(values, np.float32).ravel()
    if flat.size < UNSORTED_SIZE:
        return hashlib.sha256(np.sort(flat).tobytes()).hexdigest()
    return f"{flat.size} {flat.min()} {flat.max()} {float(np.float64(flat).mean()):.9g}"
