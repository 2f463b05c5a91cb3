"""Static int8 quantization of one ONNX graph in QDQ form, on ranges collected one sample at a time.

onnxruntime's own quantizer (1.31, onnxruntime.quantization) makes the same graph, but its MinMax calibrater drops
ranges under `CalibMaxIntermediateOutputs`, its histogram ones hold every tensor of every sample and print to stdout,
and it takes a Python loop per output channel, of which a vocabulary has 50,000.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from nightjar.errors import Broken
from nightjar.graphs.onnx_file import tensor_values
from nightjar.graphs.onnx_graph import add_constants, drop_unread_initializers, set_nodes, with_outputs
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.calibration_set import RunningHistogram, Tensors
from targets.onnx.tied_embeddings import is_plain_gemm, untie


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

    Their input is a GELU's output: mostly near 0, with the largest outliers of the network (566 against a 99.9th
    percentile of 10 in the last encoder block of tiny.en); an int8 step sized by those rounds the rest away.
    """
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    matrices = ((node.name, *dims[node.input[1]]) for node in linear_nodes(model) if node.op_type == "MatMul")
    return [name for name, rows, columns in matrices if rows >= 2 * columns]


def collect_ranges(
    model: onnx.ModelProto, tensors: Iterable[str], samples: Iterable[Tensors]
) -> dict[str, RunningHistogram]:
    """Run every sample in float; return a histogram per named tensor, Broken for one without an inferred type."""
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    histograms = {name: RunningHistogram() for name in sorted(set(tensors))}
    inputs = {v.name for v in model.graph.input}
    inner = [name for name in histograms if name not in inputs]
    if untyped := [name for name in inner if name not in known]:
        raise Broken(
            f"no type for tensor '{untyped[0]}' of the float graph; run the same command with --refresh export"
        )
    session = open_session(with_outputs(model, (known[name] for name in inner))) if inner else None
    for sample in samples:
        values = dict(zip(inner, session.run(inner, sample), strict=True)) if session else {}
        for name, histogram in histograms.items():
            histogram.add(sample[name] if name in inputs else values[name])
    return histograms


def quantize(
    model: onnx.ModelProto, nodes: Iterable[str], ranges: Mapping[str, tuple[float, float]], per_channel: bool
) -> onnx.ModelProto:
    """Put the named linear nodes in int8, in place, and return the graph.

    Activations are uint8 with a zero point, weights int8 without, and a node's output stays float: biases, residuals,
    softmax and LayerNorm need the range (623 against a median of 10 in tiny.en's last block).
    `ranges`: (low, high) of each node's input tensor.
    """
    chosen = set(nodes)
    untie(model, chosen)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    biases = _biases(graph)
    rounded: dict[str, str] = {}
    result = []
    for node in graph.node:
        if node.name in chosen:
            source, weight = node.input[:2]
            if source not in rounded:
                result += _round_activation(graph, source, *ranges[source])
                rounded[source] = result[-1].output[0]
            if weight not in rounded:
                result.append(_round_weight(graph, weights[weight], per_channel))
                rounded[weight] = result[-1].output[0]
            node.input[0], node.input[1] = rounded[source], rounded[weight]
            for bias in biases.get(node.output[0], ()):
                weights[bias].dims[:] = [1, 1, weights[bias].dims[-1]]
        result.append(node)
    set_nodes(graph, result)
    drop_unread_initializers(graph)
    return model


def _round_activation(graph: onnx.GraphProto, name: str, low: float, high: float) -> list[onnx.NodeProto]:
    """Make the QuantizeLinear and DequantizeLinear of a tensor: uint8 from low to high, 0 exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    parameters: dict[str, np.ndarray] = {
        f"{name}.int8_scale": np.array(scale, np.float32),
        f"{name}.int8_zero": np.array(zero),
    }
    add_constants(graph, parameters)
    quantized, rounded = f"{name}.int8", f"{name}.rounded"
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [quantized], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [quantized, *parameters], [rounded], name=f"{name}.dequantize"),
    ]


def _round_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, per_channel: bool) -> onnx.NodeProto:
    """Store a matrix (in, out) as int8, a scale per column or one, and make its DequantizeLinear."""
    name, values = tensor.name, tensor_values(tensor).astype(np.float32)
    peak = np.abs(values).max(axis=0) if per_channel else np.abs(values).max()
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    inputs = {f"{name}.int8": np.rint(values / scale).astype(np.int8)}
    inputs |= {f"{name}.int8_scale": scale, f"{name}.int8_zero": np.zeros(scale.shape, np.int8)}
    add_constants(graph, inputs)
    return helper.make_node("DequantizeLinear", [*inputs], [f"{name}.rounded"], name=f"{name}.dequantize", axis=1)


def _biases(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """List, per tensor of three dimensions, the constant vectors that are added to it.

    onnxruntime 1.31 fuses MatMul and a 1-D bias to Gemm before it looks for int8 (MatMulAddFusion), finds no integer
    Gemm for 3-D input, and runs the layer in float on rounded values: int8's loss without its speed. So the bias of an
    int8 MatMul gets the shape (1, 1, n).
    """
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    deep = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 3}
    added: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == "Add" and deep & set(node.input):
            for name in set(node.input) & vectors:
                added.setdefault(next(other for other in node.input if other != name), []).append(name)
    return added
