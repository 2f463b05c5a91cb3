"""Rewrites of a graph that leave its float result as it is and make int8 lose less.

A move is a plain dict, so that it can lie in ranking.json and plan.json:

{"move": "split", "add": tensor, "neurons": [...]}   a feed-forward's few huge hidden neurons get a branch of their own,
                                                   which stays float while the rest becomes int8
{"move": "scale", "tensor": name, "factors": [...]}  a norm's or an attention value's channels are divided by
                                                   factors, and the rows of the matrices behind multiplied
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.errors import Broken
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.parameter_map import FILE as PLACES
from nightjar.graphs.parameter_map import Location, read_parameter_map, write_parameter_map
from nightjar.quantization.calibration_set import Tensors
from nightjar.quantization.fake_quantize import open_session

Rewrite = Mapping[str, Any]

BRANCH = ".outlier"  # ends the names of a split's new tensors, before what each of them is
MANY = 0.01  # of a feed-forward's neurons that a split may take
HUGE = 4.0  # times the peak of the first neuron that stays in any case


def propose_rewrites(model: Any, samples: Iterable[Tensors]) -> list[dict[str, Any]]:
    """List the moves these samples call for: a split where single neurons are huge, a scale wherever it is exact."""
    graph, groups = Graph(model), fuse(model)
    splits = {add: feed for feed in _feeds(graph, groups) if (add := feed["add"])}
    scales = _scalable(graph, groups)
    names = sorted({feed["hidden"] for feed in splits.values()} | {entry["peaks"] for entry in scales})
    peaks = _peaks(graph, names, samples)
    moves: list[dict[str, Any]] = []
    for entry in scales:
        factors = _balance(peaks[entry["peaks"]])
        moves.append({"move": "scale", "tensor": entry["tensor"], "factors": [float(f"{f:.6g}") for f in factors]})
    for add, feed in splits.items():
        neurons = outlier_neurons(peaks[feed["hidden"]])
        if neurons:
            moves.append({"move": "split", "add": add, "neurons": neurons})
    return moves


def outlier_neurons(peaks: np.ndarray) -> list[int]:
    """Return the indices of at most MANY of the neurons, each HUGE times above the largest of the others."""
    order = np.argsort(-peaks, kind="stable")
    most = max(1, int(len(peaks) * MANY))
    ordinary = float(peaks[order[most]]) if len(peaks) > most else np.inf
    return sorted(int(i) for i in order[:most] if peaks[i] > HUGE * ordinary)


def apply_rewrites(model: Any, moves: Sequence[Rewrite]) -> Any:
    """Return the graph with every move made; Broken for a move that does not fit it."""
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    for move in moves:
        graph = Graph(out)
        if move["move"] == "split":
            _split(graph, str(move["add"]), list(move["neurons"]))
        elif move["move"] == "scale":
            _scale(graph, str(move["tensor"]), np.asarray(move["factors"], np.float64))
        else:
            raise Broken(f"unknown move {move['move']!r}; run the same command with --refresh rank")
        out = graph.model
    return out


def rewrite_graphs(graphs: Path, rewrites: Mapping[str, Sequence[Rewrite]], out: Path) -> None:
    """Copy a folder of graphs with each part's moves made; names, shapes of inputs and outputs, and results stay."""
    import onnx

    shutil.copytree(graphs, out, dirs_exist_ok=True)
    files = {name: part["file"] for name, part in json.loads((graphs / "model.json").read_text())["parts"].items()}
    places = read_parameter_map(graphs) if (graphs / PLACES).is_file() else None
    for part, moves in rewrites.items():
        if moves:
            model = onnx.load(graphs / files[part])
            if places is not None:
                places.parts[part].update(_branches(Graph(model), moves, places.parts[part]))
            onnx.save(apply_rewrites(model, moves), out / files[part])
    if places is not None:
        write_parameter_map(out, places)


def _branches(graph: Graph, moves: Sequence[Rewrite], places: Mapping[str, Location]) -> dict[str, Location]:
    """Say where the parameters of a split's branch lie: `NAME.outlier` is cut from parameter NAME."""
    named = {initializer: name for name, (initializer, _) in places.items()}
    feeds = {feed["add"]: feed for feed in _feeds(graph, fuse(graph.model))}
    found: dict[str, Location] = {}
    for move in moves:
        if move["move"] == "split":
            for kind in ("w1", "b1", "w2", "b2"):
                name = named[feeds[str(move["add"])][kind]]
                found[f"{name}{BRANCH}"] = (f"{move['add']}{BRANCH}.{kind}", places[name][1])
    return found


def _split(graph: Graph, add: str, neurons: Sequence[int]) -> None:
    """Give some hidden neurons a branch: residual + branch + the rest, instead of residual + all."""
    from onnx import helper, numpy_helper

    feed = next((f for f in _feeds(graph, fuse(graph.model)) if f["add"] == add), None)
    if feed is None:
        raise Broken(f"no feed-forward ends in '{add}'; the ranking is of other graphs: --refresh rank")
    first, bias, second = (graph.constant(feed[name]) for name in ("w1", "b1", "w2"))
    taken, rest = np.asarray(neurons), np.setdiff1d(np.arange(first.shape[1]), neurons)
    for name, values in ((feed["w1"], first[:, rest]), (feed["b1"], bias[rest]), (feed["w2"], second[rest])):
        _store(graph, name, values)
    name = f"{add}{BRANCH}"
    made = {"w1": first[:, taken], "b1": bias[taken], "w2": second[taken]}
    # Half the bias for each: rknn-toolkit2 2.5 takes the residual's add for the bias of a linear that has none.
    made["b2"] = graph.constant(feed["b2"]) / 2
    _store(graph, feed["b2"], made["b2"])
    made |= {"root": np.array(2**0.5, np.float32), "one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
    graph.model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), f"{name}.{key}") for key, value in made.items()
    )
    steps = [
        ("MatMul", [feed["input"], f"{name}.w1"], "product"),
        ("Add", [f"{name}.product", f"{name}.b1"], "first"),
        ("Div", [f"{name}.first", f"{name}.root"], "divided"),
        ("Erf", [f"{name}.divided"], "erf"),
        ("Add", [f"{name}.erf", f"{name}.one"], "shifted"),
        ("Mul", [f"{name}.first", f"{name}.shifted"], "doubled"),
        ("Mul", [f"{name}.doubled", f"{name}.half"], "gelu"),
        ("MatMul", [f"{name}.gelu", f"{name}.w2"], "narrowed"),
        ("Add", [f"{name}.narrowed", f"{name}.b2"], "second"),
        ("Add", [feed["residual"], f"{name}.second"], "sum"),
    ]
    new = [helper.make_node(op, inputs, [f"{name}.{out}"], name=f"{name}.{out}") for op, inputs, out in steps]
    node = graph.producers[add]
    node.input[list(node.input).index(feed["residual"])] = f"{name}.sum"
    nodes = []
    for other in graph.model.graph.node:
        nodes += [*new, other] if other.output[0] == add else [other]
    copied = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.model.graph.node[:]
    graph.model.graph.node.extend(copied)
    del graph.model.graph.value_info[:]  # shapes changed; the next Graph infers them


def _scale(graph: Graph, tensor: str, factors: np.ndarray) -> None:
    """Divide a tensor's channels by factors where it is made, and multiply the rows of what reads it."""
    entry = next((e for e in _scalable(graph, fuse(graph.model)) if e["tensor"] == tensor), None)
    if entry is None or len(factors) != entry["channels"]:
        raise Broken(f"'{tensor}' cannot be scaled here; the ranking is of other graphs: --refresh rank")
    for name in entry["made_by"]:
        _store(graph, name, graph.constant(name) / factors)
    for name in entry["read_by"]:
        _store(graph, name, graph.constant(name) * factors[:, None])


def _feeds(graph: Graph, groups: Sequence[Group]) -> list[dict[str, str]]:
    """Describe each linear → GELU → linear → add: its tensors by what they are."""
    by_tensor = {group.tensor: group for group in groups}
    found = []
    for add in (g for g in groups if g.kind == "add"):
        for second in (by_tensor.get(name) for name in add.inputs):
            gelu = by_tensor.get(second.inputs[0]) if second is not None and second.kind == "linear" else None
            first = by_tensor.get(gelu.inputs[0]) if gelu is not None and gelu.kind == "gelu" else None
            if second is None or gelu is None or first is None or first.kind != "linear":
                continue
            node = graph.producers[add.tensor]
            residual = next((n for n in node.input if graph.root(n) != second.tensor), None)
            bias = [n for g in (first, second) for n in _bias(graph, g)]
            weights = (first.weights[0], second.weights[0], *bias)
            if residual is None or len(bias) != 2 or any(len(graph.readers[w]) != 1 for w in weights):
                continue
            found.append(
                {
                    "add": add.tensor,
                    "input": _node(graph, first.nodes[0]).input[0],
                    "residual": residual,
                    "hidden": gelu.tensor,
                    "w1": first.weights[0],
                    "b1": bias[0],
                    "w2": second.weights[0],
                    "b2": bias[1],
                }
            )
    return found


def _bias(graph: Graph, group: Group) -> list[str]:
    """Name the constants that a linear's nodes behind the product add."""
    nodes = [_node(graph, name) for name in group.nodes[1:]]
    return [name for node in nodes if node.op_type == "Add" for name in node.input if graph.is_constant(name)]


def _scalable(graph: Graph, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """List the tensors whose channels can be scaled: norms and attention values that only linears read."""
    by_tensor = {group.tensor: group for group in groups}
    found = []
    for group in groups:
        readers = [g for g in groups if group.tensor in g.inputs]
        source = group
        if group.kind == "attention":  # a mixture of values scales with them; q and k do not enter
            value = by_tensor.get(graph.root(_node(graph, group.nodes[-1]).input[1]))
            if value is None or value.kind != "linear" or sum(value.tensor in g.inputs for g in groups) != 1:
                continue
            source = value
        elif group.kind != "norm":
            continue
        made_by = _per_channel(graph, source)
        read_by = [g.weights[0] for g in readers if g.kind == "linear"]
        shared = any(len(graph.readers[name]) != 1 for name in (*made_by, *read_by))
        if group.tensor in graph.outputs or source.tensor in graph.outputs or shared or not made_by or not readers:
            continue
        channels = graph.shape(read_by[0])[0] if len(read_by) == len(readers) else 0
        if channels and all(graph.shape(name)[-1] == channels for name in made_by):
            entry = {"tensor": source.tensor, "peaks": source.tensor, "made_by": made_by, "read_by": read_by}
            found.append(entry | {"channels": channels})
    return found


def _per_channel(graph: Graph, group: Group) -> list[str]:
    """List the constants to divide so that a norm's or a linear's output is divided: weights and bias."""
    if group.kind == "norm":
        return list(group.weights)
    nodes = [_node(graph, name) for name in group.nodes]
    return [*group.weights, *_bias(graph, group)] if all(node.op_type in ("MatMul", "Add") for node in nodes) else []


def _peaks(graph: Graph, names: Sequence[str], samples: Iterable[Tensors]) -> dict[str, np.ndarray]:
    """Return the largest magnitude of every channel (last axis) of each tensor over the samples."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    del probe.graph.output[:]
    probe.graph.output.extend(graph.values[name] for name in names)
    peaks: dict[str, np.ndarray] = {}
    if not names:
        return peaks
    session = open_session(probe)
    for sample in samples:
        for name, value in zip(names, session.run(list(names), sample), strict=True):
            peak = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return peaks


def _balance(peaks: np.ndarray) -> np.ndarray:
    """Return factors of geometric mean 1 that halve, in decibels, how far the channels' peaks lie apart."""
    root = np.sqrt(np.maximum(peaks.astype(np.float64), 1e-3 * max(float(peaks.max()), 1e-6)))
    return np.asarray(root / np.exp(np.log(root).mean()))


def _node(graph: Graph, name: str) -> Any:
    return next(node for node in graph.nodes if node.name == name)


def _store(graph: Graph, name: str, values: np.ndarray) -> None:
    from onnx import numpy_helper

    for tensor in graph.model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.astype(np.float32)), name))
            return
    raise Broken(f"'{name}' is no stored weight of this graph; export it again: --refresh export")
