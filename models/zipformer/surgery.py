"""Make an exported streaming graph fit for an NPU: one stream, fixed shapes, no look-ups, no sums that grow.

Each step keeps the results but for the order of sums in float32; export proves it on the graph at hand.
"""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnx.helper import make_node

from nightjar.errors import BadCheckpoint
from nightjar.graphs.onnx_graph import Editor, attribute

RESHAPING = ("Unsqueeze", "Reshape", "Squeeze", "Transpose")
FUSIONS = ["MatMulAddFusion", "ReshapeFusion", "ConvAddFusion", "ConvMulFusion", "ConvBNFusion", "GemmActivationFusion"]
BETWEEN = ("Gather", "Slice", "Cast", *RESHAPING)  # a count of frames and the node that computes with it
COMPARING = ("LessOrEqual", "Less", "GreaterOrEqual", "Greater", "Reciprocal")
COMPUTING = ("Add", "Sub", "Mul", "Concat")


def fix_shapes(model: Any) -> Any:
    """Return the graph for one stream, with every open axis 1 and all that follows from it computed.

    Raises BadCheckpoint where a shape still depends on the input.
    """
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    del model.graph.value_info[:]
    folded = onnx.shape_inference.infer_shapes(_fold_constants(model), data_prop=True)
    for value in (*folded.graph.input, *folded.graph.output):
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim):
            raise BadCheckpoint(
                f"the shape of {value.name} depends on the input, and an NPU needs fixed shapes: "
                "export the model with a fixed chunk (icefall's export-onnx-*.py)"
            )
    return folded


def _fold_constants(model: Any) -> Any:
    """Let onnxruntime compute what is constant; nothing is fused, so that a graph keeps its layers."""
    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(  # type: ignore[attr-defined]
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=FUSIONS
        )
        folded = onnx.load(options.optimized_model_filepath)
    opsets = [each for each in folded.opset_import if each.domain == ""]  # onnxruntime lists all it knows
    del folded.opset_import[:]
    folded.opset_import.extend(opsets)
    return folded


def slice_look_up(editor: Editor, node: Any) -> list[Any]:
    """Turn a Gather of one fixed index into a Slice: MDLA and Hailo have no Gather, RKNN hands it to the CPU."""
    index, shape = editor.find_constant(node.input[1]), editor.shapes.get(node.input[0])
    if index is None or index.size != 1 or index.ndim > 1 or not shape or editor.is_constant(node.input[0]):
        return []
    axis, out = attribute(node, "axis", 0) % len(shape), node.output[0]
    at = int(index.reshape(-1)[0]) % shape[axis]
    bounds = _store_ints(editor, out, {"at": [at], "to": [at + 1], "axis": [axis]})
    if index.ndim == 1:
        return [make_node("Slice", [node.input[0], *bounds.values()], [out], name=node.name)]
    rest = _store_ints(editor, out, {"shape": [*shape[:axis], *shape[axis + 1 :]]})
    return [
        make_node("Slice", [node.input[0], *bounds.values()], [f"{out}.cut"], name=f"{node.name}.cut"),
        make_node("Reshape", [f"{out}.cut", rest["shape"]], [out], name=node.name),
    ]


def shift_distances(editor: Editor, node: Any) -> list[Any]:
    """Take relative positions to absolute ones by moving rows instead of gathering each element.

    scores (…, c, n + c - 1) -> (…, c, n), row i beginning at c - 1 - i (Transformer-XL's shift): in one flat row a row
    begins every n + c - 2 elements, from c - 1 on. icefall puts batch, heads and queries in one axis: (b · h · c, …).
    """
    index, shape = editor.find_constant(node.input[1]), editor.shapes.get(node.input[0], ())
    axis = attribute(node, "axis", 0) % max(1, len(shape))
    if index is None or axis != len(shape) - 1 or index.ndim != len(shape):
        return []
    (*outer, rows, n), width = index.shape, shape[-1]
    if outer and shape[-2] == rows:
        c, leading = rows, tuple(shape[:-2])
    else:
        c = width - n + 1
        leading = (rows // max(1, c),)
        if index.ndim != 2 or rows % max(1, c):
            return []
    if width != n + c - 1 or c < 2:
        return []
    if (index.reshape(-1, c, n) != np.arange(c - 1, -1, -1)[:, None] + np.arange(n)).any():
        return []
    out, last = node.output[0], len(leading)
    shapes = {"flat": [*leading, c * width], "rows": [*leading, c, width - 1], "shape": list(editor.shapes[out])}
    ends = {"from": [c - 1], "until": [c * width - 1], "zero": [0], "n": [n], "last": [last], "inner": [last + 1]}
    name = _store_ints(editor, out, shapes | ends)
    steps = [
        ("Reshape", [node.input[0], name["flat"]], "1"),
        ("Slice", [f"{out}.1", name["from"], name["until"], name["last"]], "2"),
        ("Reshape", [f"{out}.2", name["rows"]], "3"),
        ("Slice", [f"{out}.3", name["zero"], name["n"], name["inner"]], "4"),
    ]
    nodes = [make_node(op, inputs, [f"{out}.{to}"], name=f"{node.name}.{to}") for op, inputs, to in steps]
    return [*nodes, make_node("Reshape", [f"{out}.4", name["shape"]], [out], name=node.name)]


def multiply_sum(editor: Editor, node: Any) -> list[Any]:
    """Turn a CumSum into a product with a triangle of ones: no NPU here has CumSum."""
    axis, shape = editor.find_constant(node.input[1]), editor.shapes.get(node.input[0], ())
    if axis is None or len(shape) < 2 or attribute(node, "exclusive", 0) or attribute(node, "reverse", 0):
        return []
    at, out, source = int(axis.reshape(-1)[0]) % len(shape), node.output[0], node.input[0]
    ones = editor.store(f"{out}.ones", np.tril(np.ones((shape[at], shape[at]), np.float32)))
    if at == len(shape) - 2:
        return [make_node("MatMul", [ones, source], [out], name=node.name)]
    others = [i for i in range(len(shape)) if i != at]
    order = [*others[:-1], at, others[-1]]
    back = np.argsort(order).tolist()
    return [
        make_node("Transpose", [source], [f"{out}.in"], name=f"{node.name}.in", perm=order),
        make_node("MatMul", [ones, f"{out}.in"], [f"{out}.sum"], name=f"{node.name}.sum"),
        make_node("Transpose", [f"{out}.sum"], [out], name=node.name, perm=back),
    ]


def split_kernels(editor: Editor, most: int) -> int:
    """Turn a convolution over time with more than `most` taps into the sum of several, each of some of the taps."""

    def rewrite(editor: Editor, node: Any) -> list[Any]:
        kernel = editor.find_constant(node.input[1])
        shape = editor.shapes.get(node.input[0], ())
        if kernel is None or kernel.ndim != 3 or len(shape) != 3 or kernel.shape[2] <= most:
            return []
        if attribute(node, "strides", [1]) != [1] or attribute(node, "dilations", [1]) != [1]:
            return []
        taps, frames, out = kernel.shape[2], shape[2], node.output[0]
        before, after = attribute(node, "pads", [0, 0])
        axis, nodes, products = _store_ints(editor, out, {"axis": [2]})["axis"], [], []
        for number, at in enumerate(range(0, taps, most)):
            to, source, name = min(at + most, taps), node.input[0], f"{out}.taps.{number}"
            first, last = max(0, at - before), frames - max(0, taps - to - after)
            if (first, last) != (0, frames):
                ends = _store_ints(editor, name, {"from": [first], "until": [last]})
                nodes.append(make_node("Slice", [source, *ends.values(), axis], [f"{name}.in"], name=f"{name}.in"))
                source = f"{name}.in"
            weight = editor.store(f"{name}.weight", np.ascontiguousarray(kernel[:, :, at:to]))
            settings = {
                "group": attribute(node, "group", 1),
                "kernel_shape": [to - at],
                "pads": [max(0, before - at), max(0, after - (taps - to))],
            }
            bias = node.input[2:] if number == 0 else []
            nodes.append(make_node("Conv", [source, weight, *bias], [name], name=name, **settings))
            products.append(name)
        total = products[0]
        for number, name in enumerate(products[1:], 1):
            left, total = total, f"{out}.sum.{number}"
            nodes.append(make_node("Add", [left, name], [total], name=total))
        nodes[-1].output[0], nodes[-1].name = out, node.name
        return nodes

    return editor.replace("Conv", rewrite)


def bound_average(editor: Editor, node: Any, counts: Collection[str]) -> list[Any]:
    """Update a running average without its sum: (s + a·l)/(l + n) becomes a + (s - n·a)/(l + n), n frames being new.

    The first generation's pooling multiplies the average so far by the number of frames. In float16 that product has 11
    bits from 40 s of speech on, and is infinite beyond 65,504: five minutes where the average is 4. The rewritten form
    has only the reciprocal of the count, which fades, as do the corrections: rounded, the average rests.
    counts: the inputs that count frames.
    """

    def factor(node: Any) -> str | None:
        """Return the other operand of a node with one operand that counts frames."""
        others = [source for source in node.input if editor.root(source, BETWEEN) not in counts]
        return others[0] if len(others) == len(node.input) - 1 else None

    def find_average(name: str) -> tuple[str, list[Any]] | None:
        """Find a·l: the average, and the Unsqueeze nodes from the product on."""
        moves: list[Any] = []
        while (node := editor.producers.get(name)) is not None and node.op_type == "Unsqueeze":
            moves.insert(0, node)
            name = node.input[0]
        average = factor(node) if node is not None and node.op_type == "Mul" else None
        return None if average is None else (average, moves)

    def new_frames(rate: str) -> np.ndarray | None:
        """Find n of 1/(l + n), in the rate's shape."""
        name, shape = rate, editor.shapes.get(rate, ())
        while (node := editor.producers.get(name)) is not None and node.op_type in (*BETWEEN, "Reciprocal", "Div"):
            name = node.input[node.op_type == "Div"]
        added = factor(node) if node is not None and node.op_type == "Add" else None
        constant = None if added is None else editor.find_constant(added)
        return None if constant is None or constant.size != np.prod(shape) else constant.reshape(shape)

    for total, rate in (tuple(node.input), tuple(reversed(node.input))):
        added = editor.producers.get(total)
        if added is None or added.op_type != "Add" or len(editor.readers[total]) != 1:
            continue
        for running, fresh in (tuple(added.input), tuple(reversed(added.input))):
            if (found := find_average(running)) is None or (new := new_frames(rate)) is None:
                continue
            (average, moves), out, nodes = found, node.output[0], []
            for number, move in enumerate(moves):
                name = f"{out}.average.{number}"
                nodes.append(make_node("Unsqueeze", [average, *move.input[1:]], [name], name=name))
                nodes[-1].attribute.extend(move.attribute)
                average = name
            steps = [
                ("Mul", [average, editor.store(f"{out}.new", new.astype(np.float32))], f"{out}.due"),
                ("Sub", [fresh, f"{out}.due"], f"{out}.news"),
                ("Mul", [f"{out}.news", rate], f"{out}.step"),
                ("Add", [average, f"{out}.step"], out),
            ]
            return nodes + [make_node(op, inputs, [to], name=to) for op, inputs, to in steps]
    return []


def float_counts(editor: Editor, counts: Mapping[str, str]) -> int:
    """Count frames in float32 instead of int64: exact up to 2^24 frames, which is 93 hours at 50 Hz.

    counts: the inputs that count, and their outputs. Raises BadCheckpoint where a count goes into an operator that has
    no float32 counterpart.
    """
    graph = editor.model.graph
    for value in (*graph.input, *graph.output):
        if value.name in counts or value.name in counts.values():
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    waiting, seen = list(counts), set(counts)
    while waiting:
        name = waiting.pop()
        for node in editor.readers.get(name, []):
            if node.op_type == "Cast":
                node.op_type = "Identity"
                del node.attribute[:]
                continue
            if node.op_type not in (*COMPARING, *COMPUTING, *RESHAPING, "Identity", "Gather", "Slice"):
                raise BadCheckpoint(
                    f"{name} counts frames and goes into {node.op_type} '{node.name}', which has no float32 "
                    "counterpart: export with a recipe that keeps int64 states"
                )
            if node.op_type in (*COMPARING, *COMPUTING):
                _float_constants(editor, node)
            if node.op_type not in COMPARING:
                waiting += [out for out in node.output if out not in seen]
                seen.update(node.output)
    del graph.value_info[:]
    editor.refresh()
    return len(counts)


def _float_constants(editor: Editor, node: Any) -> None:
    for number, name in enumerate(node.input):
        values = editor.find_constant(name)
        if values is not None and values.dtype == np.int64:
            node.input[number] = f"{name}.float"
            if all(tensor.name != f"{name}.float" for tensor in editor.model.graph.initializer):
                editor.store(f"{name}.float", values.astype(np.float32))


def _store_ints(editor: Editor, tensor: str, values: Mapping[str, list[int]]) -> dict[str, str]:
    """Store int64 constants as `tensor.key`; return their names by key."""
    return {key: editor.store(f"{tensor}.{key}", np.array(value, np.int64)) for key, value in values.items()}
