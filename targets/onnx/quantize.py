"""Static int8 quantization of one ONNX graph, with onnxruntime's own QDQ pass and ranges of our own collecting.

onnxruntime's calibrators are not used: with `CalibMaxIntermediateOutputs` MinMax drops the ranges it has not merged
yet, the histogram ones hold every tensor of every sample and print to stdout (onnxruntime 1.31,
quantization/calibrate.py). Here a range is a `Spread` per tensor, and one sample is in memory.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

import onnx
from nightjar.calibration import Spread, Tensors
from targets.onnx.tables import untie

# Convolutions stay float: with a float output onnxruntime runs them in float whatever their inputs are.
LINEAR = ("MatMul", "Gemm")


def load_graph(path: Path) -> onnx.ModelProto:
    """Load a graph with the shape of every tensor inferred and a name for every node."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def linear_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that multiply an activation by a constant weight, in graph order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in LINEAR and node.input[1] in weights and node.input[0] not in weights:
            yield node


def float_by_rule(model: onnx.ModelProto) -> list[str]:
    """Name the linear nodes that the default rules keep float: those that narrow (a feed-forward's second layer).

    Their input is what a GELU lets through: mostly near 0, with the largest outliers of the network (566 against a
    99.9th percentile of 10 in the last encoder block of tiny.en); an int8 step sized by those rounds the rest away.
    """
    return [node.name for node in linear_nodes(model) if node.op_type == "MatMul" and _narrows(model, node)]


def collect_ranges(model: onnx.ModelProto, tensors: Iterable[str], samples: Iterable[Tensors]) -> dict[str, Spread]:
    """Run every sample through the float graph and return the spread of the tensors named."""
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    spreads = {name: Spread() for name in sorted(set(tensors))}
    inputs = {v.name for v in model.graph.input}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probed = [name for name in spreads if name not in inputs]
    del probe.graph.output[:]
    probe.graph.output.extend(known[name] for name in probed)
    session = open_session(probe.SerializeToString())
    for sample in samples:
        values = dict(zip(probed, session.run(probed, sample), strict=True)) if probed else {}
        for name, spread in spreads.items():
            spread.add(sample[name] if name in inputs else values[name])
    return spreads


def quantize(
    model: onnx.ModelProto,
    nodes: list[str],
    ranges: dict[str, tuple[float, float]],
    per_channel: bool = True,
) -> onnx.ModelProto:
    """Return the graph with the named linear nodes in int8: uint8 activations, int8 weights, float outputs."""
    untie(model, nodes)
    quantizer = QDQQuantizer(
        model,
        per_channel=per_channel,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(
            CalibrationMethod.MinMax,
            {
                name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                for name, (low, high) in ranges.items()
            },
        ),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=list(LINEAR),
        extra_options={"OpTypesToExcludeOutputQuantization": list(LINEAR)},
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    _keep_biases_apart(quantized, nodes)
    return quantized


def open_session(model: str | bytes) -> ort.InferenceSession:
    """Open a graph on the CPU, quietly: onnxruntime's warnings are about its own optimiser."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _narrows(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    rows, columns = next(t.dims for t in model.graph.initializer if t.name == node.input[1])[-2:]
    return bool(rows >= 2 * columns)


def _keep_biases_apart(model: onnx.ModelProto, nodes: list[str]) -> None:
    """Give the biases of int8 MatMuls the shape (1, 1, n).

    onnxruntime 1.31 fuses MatMul and a 1-D bias to Gemm before it looks for int8 (MatMulAddFusion), finds no integer
    Gemm for 3-D input, and runs the layer in float on rounded values: int8's loss without its speed.
    """
    outputs = {node.output[0] for node in model.graph.node if node.name in set(nodes) and node.op_type == "MatMul"}
    biases = {
        name for node in model.graph.node if node.op_type == "Add" and outputs & set(node.input) for name in node.input
    }
    for tensor in model.graph.initializer:
        if tensor.name in biases and len(tensor.dims) == 1:
            tensor.dims[:] = [1, 1, tensor.dims[0]]
