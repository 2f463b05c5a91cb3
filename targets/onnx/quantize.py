"""Static int8 quantization of one ONNX graph in QDQ form, on ranges collected one sample at a time.

onnxruntime's own quantizer (1.31, onnxruntime.quantization) makes the same graph, but its MinMax calibrater drops
ranges under `CalibMaxIntermediateOutputs`, its histogram ones hold every tensor of every sample and print to stdout,
and it takes a Python loop per output channel, of which a vocabulary has 50,000.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from nightjar.errors import Broken
from nightjar.quantization.calibration_set import RunningHistogram, Tensors
from targets.onnx.tied_embeddings import drop_unused, is_plain_gemm, untie


def load_graph(path: Path) -> onnx.ModelProto:
    """Load a graph with the shape of every tensor inferred and a name for every node."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def linear_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that multiply an activation by a constant matrix, in graph order.

    Attention multiplies activations and stays float; so do convolutions, which onnxruntime runs in float anyway where
    their output is float.
    """
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    for node in model.graph.node:
        linear = node.op_type == "MatMul" or is_plain_gemm(node)
        if linear and node.input[1] in matrices and node.input[0] not in matrices:
            yield node


def float_by_rule(model: onnx.ModelProto) -> list[str]:
    """Name the linear nodes that the default rules keep float: those that narrow (a feed-forward's second layer).

    Their input is what a GELU lets through: mostly near 0, with the largest outliers of the network (566 against a
    99.9th percentile of 10 in the last encoder block of tiny.en); an int8 step sized by those rounds the rest away.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    names = []
    for node in linear_nodes(model):
        rows, columns = shapes[node.input[1]]
        if node.op_type == "MatMul" and rows >= 2 * columns:
            names.append(node.name)
    return names


def collect_ranges(
    model: onnx.ModelProto, tensors: Iterable[str], samples: Iterable[Tensors]
) -> dict[str, RunningHistogram]:
    """Run every sample through the float graph and return the spread of the tensors named.

    Raises Broken for a tensor whose type shape inference does not find.
    """
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    spreads = {name: RunningHistogram() for name in sorted(set(tensors))}
    inputs = {v.name for v in model.graph.input}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probed = [name for name in spreads if name not in inputs]
    del probe.graph.output[:]
    try:
        probe.graph.output.extend(known[name] for name in probed)
    except KeyError as exc:
        raise Broken(
            f"no type for tensor {exc} of the float graph; run the same command with --refresh export"
        ) from exc
    session = open_session(probe.SerializeToString()) if probed else None
    for sample in samples:
        values = dict(zip(probed, session.run(probed, sample), strict=True)) if session else {}
        for name, spread in spreads.items():
            spread.add(sample[name] if name in inputs else values[name])
    return spreads


def quantize(
    model: onnx.ModelProto,
    nodes: Iterable[str],
    ranges: Mapping[str, tuple[float, float]],
    per_channel: bool = True,
) -> onnx.ModelProto:
    """Put the named linear nodes in int8, in place, and return the graph.

    Activations are uint8 with a zero point, weights int8 without, and what a node puts out stays float: biases,
    residuals, softmax and LayerNorm need the range (623 against a median of 10 in tiny.en's last block).
    `ranges`: (low, high) of each node's input tensor.
    """
    chosen = set(nodes)
    untie(model, chosen)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    biases = _biases(graph)
    made: dict[str, str] = {}
    result = []
    for node in graph.node:
        if node.name in chosen:
            source, weight = node.input[:2]
            if source not in made:
                result += _round_activation(graph, source, *ranges[source])
                made[source] = result[-1].output[0]
            if weight not in made:
                result += _round_weight(graph, weights[weight], per_channel)
                made[weight] = result[-1].output[0]
            node.input[0], node.input[1] = made[source], made[weight]
            for bias in biases.get(node.output[0], ()):
                _keep_apart(weights[bias])
        result.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in result]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(graph)
    return model


def open_session(model: str | bytes, optimized: Path | None = None) -> Any:
    """Open a graph on the CPU; with `optimized`, write there what onnxruntime makes of it.

    Quiet: onnxruntime's warnings are about its own optimiser.
    """
    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


def _round_activation(graph: onnx.GraphProto, name: str, low: float, high: float) -> list[onnx.NodeProto]:
    """Make the QuantizeLinear and DequantizeLinear of a tensor: uint8 from low to high, 0 exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    parameters = _parameters(graph, name, np.array(scale, np.float32), np.array(zero))
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.int8"], name=f"{name}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.int8", *parameters], [f"{name}.rounded"], name=f"{name}.dequantize"
        ),
    ]


def _round_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, per_channel: bool) -> list[onnx.NodeProto]:
    """Store a matrix (in, out) as int8, a scale per column or one, and make its DequantizeLinear."""
    name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float32)
    peak = np.abs(values).max(axis=0) if per_channel else np.abs(values).max()
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.int8"))
    parameters = _parameters(graph, name, scale, np.zeros(scale.shape, np.int8))
    inputs = [f"{name}.int8", *parameters]
    return [helper.make_node("DequantizeLinear", inputs, [f"{name}.rounded"], name=f"{name}.dequantize", axis=1)]


def _parameters(graph: onnx.GraphProto, name: str, scale: np.ndarray, zero: np.ndarray) -> list[str]:
    names = [f"{name}.int8_scale", f"{name}.int8_zero"]
    graph.initializer.extend(numpy_helper.from_array(value, n) for value, n in zip((scale, zero), names, strict=True))
    return names


def _biases(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """List, per tensor of three dimensions, the constant vectors that are added to it."""
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    deep = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 3}
    added: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == "Add" and deep & set(node.input):
            for name in set(node.input) & vectors:
                added.setdefault(next(other for other in node.input if other != name), []).append(name)
    return added


def _keep_apart(bias: onnx.TensorProto) -> None:
    """Give the bias of an int8 MatMul the shape (1, 1, n).

    onnxruntime 1.31 fuses MatMul and a 1-D bias to Gemm before it looks for int8 (MatMulAddFusion), finds no integer
    Gemm for 3-D input, and runs the layer in float on rounded values: int8's loss without its speed.
    """
    bias.dims[:] = [1, 1, bias.dims[-1]]
