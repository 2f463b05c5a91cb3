"""Rewrites of a graph that keep what it predicts in float and make int8 lose less.

A rewrite is a plain dict, as ranking.json and plan.json hold it:

{"move": "split", "add": tensor, "neurons": [...], "bias_share": share}
    The few huge hidden neurons of a feed-forward get a branch of their own, which stays float while the rest becomes
    int8. The branch gets this share of the second bias (npu_traits.py).
{"move": "scale", "tensor": name, "factors": [...]}
    The channels of a norm or of an attention value are divided by factors, the rows of the matrices behind multiplied.
{"move": "split_softmax", "tensor": name, "threshold": value}
    The weights of an attention become two summands with a range each (softmax_split.py).
{"move": "center_logits"}
    The mean row of a vocabulary head is subtracted from every row, which shifts all logits of a step by one number and
    changes no probability. Most of what logits span is this shift: tiny.en's head alone in int8 goes from 0.0149 to
    0.0019 nats per step.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nightjar.errors import Broken
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_file import load_model, save_model
from nightjar.graphs.onnx_graph import Graph, add_constants, attribute, set_nodes, with_outputs
from nightjar.graphs.onnx_session import open_session
from nightjar.graphs.parameter_map import FILE as PARAMETERS
from nightjar.graphs.parameter_map import Location, read_parameter_map, write_parameter_map
from nightjar.quantization.calibration_set import Tensors
from nightjar.quantization.npu_traits import DEFAULT_TRAITS, NpuTraits
from nightjar.quantization.softmax_split import propose_splits, split_softmax

Rewrite = Mapping[str, Any]

BRANCH = ".outlier"  # ends the names of a split's new tensors, before the kind of each
SPLIT_SAMPLES = 4  # that the thresholds of split attentions are chosen on
MOST_OUTLIERS = 0.01  # of a feed-forward's neurons
OUTLIER_RATIO = 4.0  # to the peak of the largest neuron that is certainly no outlier
OTHER_GRAPHS = "the ranking is of other graphs: run the same command with --refresh rank"


class FeedForward(NamedTuple):
    """The tensors of linear → GELU → linear → add."""

    input: str
    residual: str
    hidden: str
    weights: dict[str, str]  # w1, b1, w2, b2


class Scalable(NamedTuple):
    """A tensor whose channels can be scaled: the constants that make it and the matrices that read it."""

    tensor: str
    made_of: list[str]
    read_by: list[str]
    channels: int


def propose_rewrites(
    model: Any, samples: Iterable[Tensors], traits: NpuTraits = DEFAULT_TRAITS
) -> list[dict[str, Any]]:
    """List the rewrites these samples call for: splits where single neurons are huge, scales wherever exact.

    traits: of the NPU; with `integer_attention`, attentions of more than one query are split too.
    """
    graph, groups, samples = Graph(model), fuse(model), iter(samples)
    few = list(islice(samples, SPLIT_SAMPLES))  # not all: two hundred of a decoder's are gigabytes
    feeds, scalable = feed_forwards(graph, groups), scalable_tensors(graph, groups)
    names = sorted({feed.hidden for feed in feeds.values()} | {entry.tensor for entry in scalable})
    peaks = _peaks(graph, names, chain(few, samples))
    rewrites: list[dict[str, Any]] = []
    for entry in scalable:
        factors = [float(f"{factor:.6g}") for factor in _balance(peaks[entry.tensor])]
        rewrites.append({"move": "scale", "tensor": entry.tensor, "factors": factors})
    for add, feed in feeds.items():
        added = peaks[feed.hidden] * np.abs(graph.constant(feed.weights["w2"])).max(axis=1)  # to the residual, at most
        if neurons := sorted({*outlier_neurons(peaks[feed.hidden]), *outlier_neurons(added)}):
            rewrites.append({"move": "split", "add": add, "neurons": neurons, "bias_share": traits.branch_bias_share})
    if _heads(graph, groups):
        rewrites.append({"move": "center_logits"})
    # Last: a split attention is no attention any more, and its values could not be scaled.
    return rewrites + (propose_splits(graph, few) if traits.integer_attention else [])


def outlier_neurons(peaks: np.ndarray) -> list[int]:
    """Return the indices of at most MOST_OUTLIERS of the neurons, each OUTLIER_RATIO above the largest other one."""
    order = np.argsort(-peaks, kind="stable")
    most = max(1, int(len(peaks) * MOST_OUTLIERS))
    ordinary = float(peaks[order[most]]) if len(peaks) > most else np.inf
    return sorted(int(i) for i in order[:most] if peaks[i] > OUTLIER_RATIO * ordinary)


def apply_rewrites(model: Any, rewrites: Sequence[Rewrite]) -> Any:
    """Return the graph with every rewrite made in a copy; Broken for one that does not fit the graph."""
    for rewrite in rewrites:
        graph = Graph(model)
        if rewrite["move"] == "split":
            share = rewrite.get("bias_share", DEFAULT_TRAITS.branch_bias_share)
            _split(graph, str(rewrite["add"]), list(rewrite["neurons"]), share)
        elif rewrite["move"] == "scale":
            _scale(graph, str(rewrite["tensor"]), np.asarray(rewrite["factors"], np.float64))
        elif rewrite["move"] == "center_logits":
            _center_logits(graph)
        elif rewrite["move"] == "split_softmax":
            split_softmax(graph, str(rewrite["tensor"]), float(rewrite["threshold"]))
        else:
            raise Broken(f"unknown move {rewrite['move']!r}; run the same command with --refresh rank")
        model = graph.model
    return model


def rewrite_graphs(graphs: Path, rewrites: Mapping[str, Sequence[Rewrite]], out: Path) -> None:
    """Copy a folder of graphs with each part's rewrites made; inputs, outputs and results stay the same."""
    shutil.copytree(graphs, out, dirs_exist_ok=True)
    files = {name: part["file"] for name, part in json.loads((graphs / "model.json").read_text())["parts"].items()}
    parameters = read_parameter_map(graphs) if (graphs / PARAMETERS).is_file() else None
    for part in (part for part, entries in rewrites.items() if entries):
        model = load_model(graphs / files[part])
        if parameters is not None:
            parameters.parts[part].update(_branch_locations(Graph(model), rewrites[part], parameters.parts[part]))
        save_model(apply_rewrites(model, rewrites[part]), out / files[part])
    if parameters is not None:
        write_parameter_map(out, parameters)


def _branch_locations(
    graph: Graph, rewrites: Sequence[Rewrite], locations: Mapping[str, Location]
) -> dict[str, Location]:
    """Locate the parameters of each split's branch: `NAME.outlier` is cut from parameter NAME."""
    parameter_of = {initializer: name for name, (initializer, _) in locations.items()}
    feeds = feed_forwards(graph, fuse(graph.model))
    found: dict[str, Location] = {}
    for add in (str(rewrite["add"]) for rewrite in rewrites if rewrite["move"] == "split"):
        for kind, initializer in feeds[add].weights.items():
            name = parameter_of[initializer]
            found[f"{name}{BRANCH}"] = (f"{add}{BRANCH}.{kind}", locations[name][1])
    return found


def _split(graph: Graph, add: str, neurons: Sequence[int], bias_share: float) -> None:
    """Give some hidden neurons a branch: residual + branch + the rest, instead of residual + all."""
    from onnx import helper

    feed = feed_forwards(graph, fuse(graph.model)).get(add)
    if feed is None:
        raise Broken(f"no feed-forward ends in '{add}'; {OTHER_GRAPHS}")
    w1, b1, w2, b2 = map(graph.constant, feed.weights.values())
    taken, rest = np.asarray(neurons), np.setdiff1d(np.arange(w1.shape[1]), neurons)
    branch_b2 = (b2 * bias_share).astype(np.float32)
    remaining = (w1[:, rest], b1[rest], w2[rest], b2 - branch_b2)
    for name, values in zip(feed.weights.values(), remaining, strict=True):
        _overwrite(graph, name, values)
    name = f"{add}{BRANCH}"
    constants = {"w1": w1[:, taken], "b1": b1[taken], "w2": w2[taken], "b2": branch_b2}
    constants |= {key: np.array([value], np.float32) for key, value in (("root", 2**0.5), ("one", 1), ("half", 0.5))}
    add_constants(graph.model.graph, {f"{name}.{key}": value for key, value in constants.items()})
    steps = [
        ("MatMul", [feed.input, f"{name}.w1"], "product"),
        ("Add", [f"{name}.product", f"{name}.b1"], "first"),
        ("Div", [f"{name}.first", f"{name}.root"], "divided"),
        ("Erf", [f"{name}.divided"], "erf"),
        ("Add", [f"{name}.erf", f"{name}.one"], "shifted"),
        ("Mul", [f"{name}.first", f"{name}.shifted"], "doubled"),
        ("Mul", [f"{name}.doubled", f"{name}.half"], "gelu"),
        ("MatMul", [f"{name}.gelu", f"{name}.w2"], "narrowed"),
        ("Add", [f"{name}.narrowed", f"{name}.b2"], "second"),
        ("Add", [feed.residual, f"{name}.second"], "sum"),
    ]
    branch = [helper.make_node(op, inputs, [f"{name}.{out}"], name=f"{name}.{out}") for op, inputs, out in steps]
    node = graph.producers[add]
    node.input[list(node.input).index(feed.residual)] = f"{name}.sum"
    at = graph.nodes.index(node)
    set_nodes(graph.model.graph, [*graph.nodes[:at], *branch, *graph.nodes[at:]])
    del graph.model.graph.value_info[:]  # shapes changed; the next Graph infers them


def _scale(graph: Graph, tensor: str, factors: np.ndarray) -> None:
    """Divide a tensor's channels by factors where it is made, and multiply the rows of what reads it."""
    entry = next((e for e in scalable_tensors(graph, fuse(graph.model)) if e.tensor == tensor), None)
    if entry is None or len(factors) != entry.channels:
        raise Broken(f"'{tensor}' cannot be scaled here; {OTHER_GRAPHS}")
    for name in entry.made_of:
        _overwrite(graph, name, graph.constant(name) / factors)
    for name in entry.read_by:
        _overwrite(graph, name, graph.constant(name) * factors[:, None])


def _center_logits(graph: Graph) -> None:
    """Subtract the mean row from the rows of a vocabulary head, which may be cut into slices."""
    heads = _heads(graph, fuse(graph.model))
    if not heads:
        raise Broken(f"no vocabulary head has weights of its own; {OTHER_GRAPHS}")
    rows = [(head.weights[0], 1 - attribute(graph.named[head.nodes[0]], "transB", 0)) for head in heads]
    biases = [(name, 0) for head in heads for name in _bias(graph, head)]
    for entries in filter(None, (rows, biases)):  # each a constant and the axis of the vocabulary
        values = {name: np.moveaxis(graph.constant(name).astype(np.float64), axis, 0) for name, axis in entries}
        mean = np.concatenate(list(values.values())).mean(axis=0)
        for name, axis in entries:
            _overwrite(graph, name, np.moveaxis(values[name] - mean, 0, axis))


def _heads(graph: Graph, groups: Sequence[Group]) -> list[Group]:
    """Return the slices of a vocabulary head, none where its weights are read elsewhere too, as a token table is."""
    heads = [group for group in groups if group.kind == "head"]
    shared = any(len(graph.readers[name]) != 1 for head in heads for name in (*head.weights, *_bias(graph, head)))
    return [] if shared else heads


def feed_forwards(graph: Graph, groups: Sequence[Group]) -> dict[str, FeedForward]:
    """Find each linear → GELU → linear → add, by the tensor of the add."""
    by_tensor = {group.tensor: group for group in groups}
    found: dict[str, FeedForward] = {}
    for add in (g for g in groups if g.kind == "add"):
        for second in (by_tensor.get(name) for name in add.inputs):
            gelu = by_tensor.get(second.inputs[0]) if second is not None and second.kind == "linear" else None
            first = by_tensor.get(gelu.inputs[0]) if gelu is not None and gelu.kind == "gelu" else None
            if second is None or gelu is None or first is None or first.kind != "linear":
                continue
            node = graph.producers[add.tensor]
            residual = next((n for n in node.input if graph.root(n) != second.tensor), None)
            names = [first.weights[0], *_bias(graph, first), second.weights[0], *_bias(graph, second)]
            if residual is None or len(names) != 4 or any(len(graph.readers[name]) != 1 for name in names):
                continue
            weights = dict(zip(("w1", "b1", "w2", "b2"), names, strict=True))
            source = graph.named[first.nodes[0]].input[0]
            found.setdefault(add.tensor, FeedForward(source, residual, gelu.tensor, weights))
    return found


def _bias(graph: Graph, group: Group) -> list[str]:
    """Name the constants that a linear's nodes after the product add."""
    nodes = [graph.named[name] for name in group.nodes[1:]]
    return [name for node in nodes if node.op_type == "Add" for name in node.input if graph.is_constant(name)]


def scalable_tensors(graph: Graph, groups: Sequence[Group]) -> list[Scalable]:
    """Find the norms and attention values that only linears read."""
    by_tensor = {group.tensor: group for group in groups}
    found = []
    for group in groups:
        readers = [g for g in groups if group.tensor in g.inputs]
        source = group
        if group.kind == "attention":  # its output scales with the values; q and k have no part in it
            value = by_tensor.get(graph.root(graph.named[group.nodes[-1]].input[1]))
            if value is None or value.kind != "linear" or sum(value.tensor in g.inputs for g in groups) != 1:
                continue
            source = value
        elif group.kind != "norm":
            continue
        made_of = _channel_constants(graph, source)
        read_by = [g.weights[0] for g in readers if g.kind == "linear"]
        shared = any(len(graph.readers[name]) != 1 for name in (*made_of, *read_by))
        if group.tensor in graph.outputs or source.tensor in graph.outputs or shared or not made_of or not readers:
            continue
        channels = graph.shape(read_by[0])[0] if len(read_by) == len(readers) else 0
        if channels and all(graph.shape(name)[-1] == channels for name in made_of):
            found.append(Scalable(source.tensor, made_of, read_by, channels))
    return found


def _channel_constants(graph: Graph, group: Group) -> list[str]:
    """Name the weights and biases whose division divides the output of a norm or a linear."""
    if group.kind == "norm":
        return list(group.weights)
    nodes = [graph.named[name] for name in group.nodes]
    return [*group.weights, *_bias(graph, group)] if all(node.op_type in ("MatMul", "Add") for node in nodes) else []


def _peaks(graph: Graph, names: Sequence[str], samples: Iterable[Tensors]) -> dict[str, np.ndarray]:
    """Return the largest magnitude of every channel (last axis) of each tensor over the samples."""
    peaks: dict[str, np.ndarray] = {}
    if not names:
        return peaks
    session = open_session(with_outputs(graph.model, (graph.values[name] for name in names)))
    for sample in samples:
        for name, value in zip(names, session.run(list(names), sample), strict=True):
            peak = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return peaks


def _balance(peaks: np.ndarray) -> np.ndarray:
    """Return factors of geometric mean 1 that halve, in decibels, the distance between the channels' peaks."""
    root = np.sqrt(np.maximum(peaks.astype(np.float64), 1e-3 * max(float(peaks.max()), 1e-6)))
    return np.asarray(root / np.exp(np.log(root).mean()))


def _overwrite(graph: Graph, name: str, values: np.ndarray) -> None:
    """Give an initializer other values, as float32."""
    from onnx import numpy_helper

    for tensor in graph.model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
            return
    raise Broken(f"'{name}' is no stored weight of this graph; export it again: --refresh export")
