"""Split the softmax of an attention, so that its product with the values may be int8.

Most weights of a softmax over 1,500 frames are far below its largest, 1, and int8 has one step of 1/255 for all of
them: on tiny.en this rounding alone is 0.0100 of the 0.0101 nats per step that int8 attention costs. So

    P = Clip(P, 0, t) + Relu(P - t)        P·V = Clip(P, 0, t)·V + Relu(P - t)·V

where each product has a range of its own. Softmax, Clip and Relu stay float: in int8 they would round P before the
split. With t = 1/64 0.00009 nats remain.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nightjar.errors import Broken
from nightjar.graphs.fusion import Group, fuse
from nightjar.graphs.onnx_graph import Graph, add_constants, set_nodes, with_outputs
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.calibration_set import Tensors

ENDING = ".split"  # of the new tensors' names, before the kind of each
THRESHOLDS = tuple(2.0**-n for n in range(3, 11))
ROWS = 96  # queries of each head that a threshold is chosen on
LEVELS = 255


def splittable(graph: Graph) -> dict[str, Group]:
    """Find the attentions of more than one query, by the tensor of their softmax.

    A step of a cached decoder has one query: its products are no arithmetic worth rounding.
    """
    attentions = (group for group in fuse(graph.model) if group.kind == "attention")
    return {group.inner[1]: group for group in attentions if graph.shape(group.inner[1])[-2] > 1}


def propose_splits(graph: Graph, samples: Sequence[Tensors]) -> list[dict[str, Any]]:
    """List {"move": "split_softmax", "tensor", "threshold"} of each attention: the threshold that loses least.

    The loss is the squared error of the attention's output with int8 weights, summed over the samples.
    """
    moves = []
    for tensor, group in splittable(graph).items():
        values = graph.named[group.nodes[-1]].input[1]
        losses = np.zeros(len(THRESHOLDS))
        # One attention at a time: the weights of all of them are gigabytes in a medium model.
        session = open_session(with_outputs(graph.model, [graph.values[tensor], graph.values[values]]))
        for sample in samples:
            weights, value = session.run([tensor, values], sample)
            weights = weights[..., :: max(1, weights.shape[-2] // ROWS), :]
            losses += [_loss(weights, value, threshold) for threshold in THRESHOLDS]
        moves.append({"move": "split_softmax", "tensor": tensor, "threshold": THRESHOLDS[int(losses.argmin())]})
    return moves


def split_softmax(graph: Graph, tensor: str, threshold: float) -> None:
    """Split one softmax in place; raises Broken where the graph has no such attention."""
    from onnx import helper

    group = splittable(graph).get(tensor)
    if group is None:
        raise Broken(f"no attention has the softmax '{tensor}'; the ranking is of other graphs: pass --refresh rank")
    product, name = graph.named[group.nodes[-1]], f"{tensor}{ENDING}"
    values, out = product.input[1], product.output[0]
    constants = {"zero": 0.0, "threshold": threshold, "minus": -threshold}
    add_constants(graph.model.graph, {f"{name}.{key}": np.array(v, np.float32) for key, v in constants.items()})
    steps = [
        ("Clip", [tensor, f"{name}.zero", f"{name}.threshold"], f"{name}.low"),
        ("Add", [tensor, f"{name}.minus"], f"{name}.above"),
        ("Relu", [f"{name}.above"], f"{name}.high"),
        ("MatMul", [f"{name}.high", values], f"{name}.high_product"),
        ("MatMul", [f"{name}.low", values], f"{name}.low_product"),
        ("Add", [f"{name}.low_product", f"{name}.high_product"], out),
    ]
    new = [helper.make_node(op, inputs, [made], name=f"{name}.{op}.{made}") for op, inputs, made in steps]
    at = graph.nodes.index(product)
    set_nodes(graph.model.graph, [*graph.nodes[:at], *new, *graph.nodes[at + 1 :]])
    del graph.model.graph.value_info[:]  # the next Graph infers the new shapes


def _loss(weights: np.ndarray, values: np.ndarray, threshold: float) -> float:
    """Return the squared error of int8 weights, split at a threshold, times float values."""
    low = np.minimum(weights, threshold)
    high = weights - low
    steps = threshold / LEVELS, max(float(high.max()), 1e-6) / LEVELS
    rounded = sum(np.rint(part / step) * step for part, step in zip((low, high), steps, strict=True))
    return float(np.square((rounded - weights) @ values).sum())
