"""Make an exported streaming graph fit for an NPU: one stream, fixed shapes, no look-ups, no sums that grow.

Each step leaves the results what they are, but for the order of sums in float32; export proves it on the graph at hand.
onnx and onnxruntime are imported when used.
"""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.errors import BadCheckpoint
from nightjar.graphs.onnx_graph import Editor, attribute

MOVES = ("Unsqueeze", "Reshape", "Squeeze", "Transpose")
FUSIONS = ["MatMulAddFusion", "ReshapeFusion", "ConvAddFusion", "ConvMulFusion", "ConvBNFusion", "GemmActivationFusion"]
COUNTED = ("Gather", "Slice", "Cast", *MOVES)  # what stands between a count of frames and where it is computed with


def fix(model: Any) -> Any:
    """Return the graph for one stream, with every open axis 1 and all that follows from it computed.

    Raises BadCheckpoint where a shape still depends on what comes in.
    """
    import onnx

    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    del model.graph.value_info[:]
    folded = onnx.shape_inference.infer_shapes(_folded(model), data_prop=True)
    open_ones = [
        value.name
        for value in (*folded.graph.input, *folded.graph.output)
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim)
    ]
    if open_ones:
        raise BadCheckpoint(
            f"the shape of {open_ones[0]} depends on what is said, and an NPU takes none but fixed ones: "
            "export the model with a fixed chunk (icefall's export-onnx-*.py)"
        )
    return folded


def _folded(model: Any) -> Any:
    """Let onnxruntime compute what is constant; nothing is fused, so that a graph's layers stay what they are."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(  # type: ignore[attr-defined]
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=FUSIONS
        )
        found = onnx.load(options.optimized_model_filepath)
    kept = [each for each in found.opset_import if each.domain == ""]  # it lists all it knows
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found


def slice_look_ups(editor: Editor) -> int:
    """Cut out what a Gather takes at one fixed place: MDLA and Hailo have no Gather, RKNN hands it to the CPU."""
    from onnx import helper

    def rewrite(node: Any) -> list[Any] | None:
        index = editor.find_constant(node.input[1]) if node.op_type == "Gather" else None
        shape = editor.shapes.get(node.input[0]) if index is not None else None
        if (
            index is None
            or index.size != 1
            or index.ndim > 1
            or not shape
            or editor.find_constant(node.input[0]) is not None
        ):
            return None
        axis, out = attribute(node, "axis", 0) % len(shape), node.output[0]
        at = int(index.reshape(-1)[0]) % shape[axis]
        bounds = [
            editor.store(f"{out}.{end}", np.array([v])) for end, v in (("at", at), ("to", at + 1), ("axis", axis))
        ]
        if index.ndim == 1:
            return [helper.make_node("Slice", [node.input[0], *bounds], [out], name=node.name)]
        rest = np.array([*shape[:axis], *shape[axis + 1 :]], np.int64)
        cut = helper.make_node("Slice", [node.input[0], *bounds], [f"{out}.cut"], name=f"{node.name}.cut")
        flat = editor.store(f"{out}.shape", rest)
        return [cut, helper.make_node("Reshape", [f"{out}.cut", flat], [out], name=node.name)]

    return editor.replace(rewrite)


def shift_distances(editor: Editor) -> int:
    """Take relative positions to absolute ones by moving rows instead of looking each element up.

    scores (…, c, n + c - 1) -> (…, c, n), row i beginning at c - 1 - i (Transformer-XL's shift): in one flat row a row
    begins every n + c - 2 elements, from c - 1 on.
    """

    def rewrite(node: Any) -> list[Any] | None:
        if node.op_type != "GatherElements":
            return None
        index, shape = editor.find_constant(node.input[1]), editor.shapes.get(node.input[0], ())
        axis = attribute(node, "axis", 0) % max(1, len(shape))
        if index is None or axis != len(shape) - 1 or index.ndim != len(shape):
            return None
        (*outer, c, n), wide = index.shape, shape[-1]
        rows = c if outer and shape[-2] == c else 0
        if not rows:  # icefall puts batch, heads and queries in one axis
            return _shift_flat(editor, node, index, shape)
        wanted = (np.arange(c - 1, -1, -1)[:, None] + np.arange(n)).astype(index.dtype)
        if wide != n + c - 1 or c < 2 or not (index == wanted).all():
            return None
        return _shifted(editor, node, tuple(shape[:-2]), c, n)

    return editor.replace(rewrite)


def _shift_flat(editor: Editor, node: Any, index: np.ndarray, shape: tuple[int, ...]) -> list[Any] | None:
    """The same for (batch · heads · c, n + c - 1)."""
    rows, n = index.shape
    c = shape[-1] - n + 1
    if index.ndim != 2 or c < 2 or rows % c:
        return None
    wanted = (np.arange(c - 1, -1, -1)[:, None] + np.arange(n)).astype(index.dtype)
    if not (index == np.tile(wanted, (rows // c, 1))).all():
        return None
    return _shifted(editor, node, (rows // c,), c, n)


def _shifted(editor: Editor, node: Any, outer: tuple[int, ...], c: int, n: int) -> list[Any]:
    from onnx import helper

    out, wide = node.output[0], n + c - 1
    last = np.array([len(outer)])
    shapes = {"flat": [*outer, c * wide], "rows": [*outer, c, wide - 1], "shape": list(editor.shapes[out])}
    name = {key: editor.store(f"{out}.{key}", np.array(value, np.int64)) for key, value in shapes.items()}
    ends = {"from": [c - 1], "until": [c * wide - 1], "zero": [0], "n": [n]}
    name |= {key: editor.store(f"{out}.{key}", np.array(value, np.int64)) for key, value in ends.items()}
    name["last"], name["inner"] = editor.store(f"{out}.last", last), editor.store(f"{out}.inner", last + 1)
    steps = [
        ("Reshape", [node.input[0], name["flat"]], "1"),
        ("Slice", [f"{out}.1", name["from"], name["until"], name["last"]], "2"),
        ("Reshape", [f"{out}.2", name["rows"]], "3"),
        ("Slice", [f"{out}.3", name["zero"], name["n"], name["inner"]], "4"),
    ]
    nodes = [helper.make_node(op, inputs, [f"{out}.{to}"], name=f"{node.name}.{to}") for op, inputs, to in steps]
    return [*nodes, helper.make_node("Reshape", [f"{out}.4", name["shape"]], [out], name=node.name)]


def multiply_sums(editor: Editor) -> int:
    """Sum up along an axis with a triangle of ones: no NPU here has CumSum."""
    from onnx import helper

    def rewrite(node: Any) -> list[Any] | None:
        axis = editor.find_constant(node.input[1]) if node.op_type == "CumSum" else None
        shape = editor.shapes.get(node.input[0], ())
        plain = node.op_type == "CumSum" and not attribute(node, "exclusive", 0) and not attribute(node, "reverse", 0)
        if axis is None or not plain or len(shape) < 2:
            return None
        at, out, source = int(axis.reshape(-1)[0]) % len(shape), node.output[0], node.input[0]
        ones = editor.store(f"{out}.ones", np.tril(np.ones((shape[at], shape[at]), np.float32)))
        if at == len(shape) - 2:
            return [helper.make_node("MatMul", [ones, source], [out], name=node.name)]
        order = [i for i in range(len(shape)) if i != at]
        order = [*order[:-1], at, order[-1]]
        back = [order.index(i) for i in range(len(shape))]
        return [
            helper.make_node("Transpose", [source], [f"{out}.in"], name=f"{node.name}.in", perm=order),
            helper.make_node("MatMul", [ones, f"{out}.in"], [f"{out}.sum"], name=f"{node.name}.sum"),
            helper.make_node("Transpose", [f"{out}.sum"], [out], name=node.name, perm=back),
        ]

    return editor.replace(rewrite)


def cut_kernels(editor: Editor, most: int) -> int:
    """Make a convolution over time with more than `most` taps the sum of several: each takes some of them."""
    from onnx import helper

    def rewrite(node: Any) -> list[Any] | None:
        kernel = editor.find_constant(node.input[1]) if node.op_type == "Conv" else None
        shape = editor.shapes.get(node.input[0], ())
        if kernel is None or kernel.ndim != 3 or len(shape) != 3 or kernel.shape[2] <= most:
            return None
        if attribute(node, "strides", [1]) != [1] or attribute(node, "dilations", [1]) != [1]:
            return None
        taps, frames, out = kernel.shape[2], shape[2], node.output[0]
        before, behind = attribute(node, "pads", [0, 0])
        axis, nodes, sums = editor.store(f"{out}.axis", np.array([2])), [], []
        for number, at in enumerate(range(0, taps, most)):
            to, source = min(at + most, taps), node.input[0]
            first, last = max(0, at - before), frames - max(0, taps - to - behind)
            name = f"{out}.taps.{number}"
            if (first, last) != (0, frames):
                ends = [editor.store(f"{name}.{end}", np.array([v])) for end, v in (("from", first), ("until", last))]
                nodes.append(helper.make_node("Slice", [source, *ends, axis], [f"{name}.in"], name=f"{name}.in"))
                source = f"{name}.in"
            weight = editor.store(f"{name}.weight", np.ascontiguousarray(kernel[:, :, at:to]))
            settings = {
                "group": attribute(node, "group", 1),
                "kernel_shape": [to - at],
                "pads": [max(0, before - at), max(0, behind - (taps - to))],
            }
            bias = node.input[2:] if number == 0 else []
            nodes.append(helper.make_node("Conv", [source, weight, *bias], [name], name=name, **settings))
            sums.append(name)
        for number, name in enumerate(sums[1:], 1):
            last_one = number == len(sums) - 1
            total = out if last_one else f"{out}.sum.{number}"
            label = node.name if last_one else total
            nodes.append(helper.make_node("Add", [sums[0], name], [total], name=label))
            sums[0] = total
        return nodes

    return editor.replace(rewrite)


def bound_averages(editor: Editor, counts: Collection[str]) -> int:
    """Keep a running average without its sum: (s + a·l)/(l + n) becomes a + (s - n·a)/(l + n), n frames being new.

    The first generation's pooling multiplies the average of all that was heard by the number of frames. In float16 that
    product has 11 bits from 40 s of speech on, and is infinite behind 65,504: five minutes where the average is 4. What
    is left of the count is its reciprocal, which only fades, as do the corrections: rounded, the average rests.
    counts: the inputs that count frames.
    """
    from onnx import helper

    def counted(name: str) -> bool:
        while (node := editor.producers.get(name)) is not None and node.op_type in COUNTED:
            name = node.input[0]
        return name in counts

    def average_of(name: str) -> tuple[str, list[Any]] | None:
        """Find a·l behind moves: the average, and the moves from the product on."""
        moves: list[Any] = []
        while (node := editor.producers.get(name)) is not None and node.op_type == "Unsqueeze":
            moves.insert(0, node)
            name = node.input[0]
        if node is None or node.op_type != "Mul" or sum(map(counted, node.input)) != 1:
            return None
        return next(source for source in node.input if not counted(source)), moves

    def new_frames(rate: str) -> np.ndarray | None:
        """Find n of 1/(l + n), in the rate's shape."""
        name, shape = rate, editor.shapes.get(rate, ())
        while (node := editor.producers.get(name)) is not None and node.op_type in (*COUNTED, "Reciprocal", "Div"):
            name = node.input[node.op_type == "Div"]
        if node is None or node.op_type != "Add" or sum(map(counted, node.input)) != 1:
            return None
        constant = next((editor.find_constant(source) for source in node.input if not counted(source)), None)
        return None if constant is None or constant.size != np.prod(shape) else constant.reshape(shape)

    def rewrite(node: Any) -> list[Any] | None:
        if node.op_type != "Mul":
            return None
        for total, rate in (tuple(node.input), tuple(reversed(node.input))):
            added = editor.producers.get(total)
            if added is None or added.op_type != "Add" or len(editor.readers[total]) != 1:
                continue
            for running, fresh in (tuple(added.input), tuple(reversed(added.input))):
                if (found := average_of(running)) is None or (new := new_frames(rate)) is None:
                    continue
                (average, moves), out, nodes = found, node.output[0], []
                for number, move in enumerate(moves):
                    name = f"{out}.average.{number}"
                    copied = helper.make_node("Unsqueeze", [average, *move.input[1:]], [name], name=name)
                    copied.attribute.extend(move.attribute)
                    nodes.append(copied)
                    average = name
                steps = [
                    ("Mul", [average, editor.store(f"{out}.new", new.astype(np.float32))], f"{out}.due"),
                    ("Sub", [fresh, f"{out}.due"], f"{out}.news"),
                    ("Mul", [f"{out}.news", rate], f"{out}.step"),
                    ("Add", [average, f"{out}.step"], out),
                ]
                return nodes + [helper.make_node(op, inputs, [to], name=to) for op, inputs, to in steps]
        return None

    return editor.replace(rewrite)


def float_counts(editor: Editor, counts: Mapping[str, str]) -> int:
    """Count frames in float32 instead of int64: exact up to 2^24 frames, which is 93 hours at 50 Hz.

    counts: the inputs that count, and the outputs that they go on as. Raises BadCheckpoint where one is computed with
    in a way that has no float32 twin.
    """
    from onnx import TensorProto

    graph = editor.model.graph
    todo, seen = list(counts), set(counts)
    for value in (*graph.input, *graph.output):
        if value.name in counts or value.name in counts.values():
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    allowed = {"Add", "Sub", "Mul", "Concat", "Identity", *MOVES, "Gather", "Slice"}
    while todo:
        name = todo.pop()
        for node in editor.readers.get(name, []):
            if node.op_type == "Cast":
                node.op_type = "Identity"
                del node.attribute[:]
                continue
            if node.op_type in ("LessOrEqual", "Less", "GreaterOrEqual", "Greater", "Reciprocal"):
                _float_constants(editor, node)
                continue
            if node.op_type not in allowed:
                raise BadCheckpoint(
                    f"{name} counts frames and goes into {node.op_type} '{node.name}', which has no float32 twin: "
                    "export with a recipe that keeps int64 states"
                )
            if node.op_type in ("Add", "Sub", "Mul", "Concat"):
                _float_constants(editor, node)
            for out in node.output:
                if out not in seen:
                    seen.add(out)
                    todo.append(out)
    del graph.value_info[:]
    editor.refresh()
    return len(counts)


def _float_constants(editor: Editor, node: Any) -> None:
    for number, name in enumerate(node.input):
        values = editor.find_constant(name)
        if values is not None and values.dtype == np.int64:
            new = f"{name}.float"
            if new not in {tensor.name for tensor in editor.model.graph.initializer}:
                editor.store(new, values.astype(np.float32))
            node.input[number] = new
