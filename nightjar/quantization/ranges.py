"""Int8 ranges from calibration samples: which of a tensor's values the 256 levels span.

Wider ranges cost resolution for every value, narrower ones clip the few at the ends. tiny.en's encoder, linears in
int8, 40 clips of speakers outside the calibration set, nats per decoder step: 0.0026 with the extremes of 24 or of 160
clips, 0.0017 with the two rules here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nightjar.errors import BadInput
from nightjar.graphs.fusion import Group
from nightjar.graphs.onnx_graph import Graph, with_outputs
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.calibration_set import Tensors

Range = tuple[float, float]
Extremes = Mapping[str, Sequence[Range]]

SAMPLE_SHARE = 0.9  # of the samples have their extremes inside: one loud clip does not coarsen all others
LARGE_TENSOR = 2**15  # elements from which a sample's extremes are a statistic; a decoder step has fewer, all count
GELU_SILENCE = -3.5  # GELU's output is -0.001 here and nearer to 0 below, so lower inputs are cut (-2.5: 0.04 nats)


def quantized_tensors(graph: Graph, groups: Sequence[Group]) -> list[str]:
    """Name the float tensors that groups read, hold or write."""
    names = {name for group in groups for name in (*group.inputs, *group.inner, group.tensor)}
    return sorted(name for name in names if graph.is_float(name))


def collect_extremes(graph: Graph, names: Sequence[str], samples: Iterable[Tensors]) -> dict[str, list[Range]]:
    """Run every sample in float and return its (low, high) of each tensor; NaN and infinity raise BadInput."""
    from onnx import TensorProto, helper

    probed = [name for name in names if name not in graph.inputs]
    # The graph computes the extremes itself: a tensor of megabytes need not leave it.
    ends = [(op, f"range.{op}.{n}", name) for n, name in enumerate(probed) for op in ("ReduceMin", "ReduceMax")]
    outputs = [end for _, end, _ in ends]
    probe = with_outputs(graph.model, [helper.make_tensor_value_info(end, TensorProto.FLOAT, []) for end in outputs])
    probe.graph.node.extend(helper.make_node(op, [name], [end], keepdims=0) for op, end, name in ends)
    session = open_session(probe)
    extremes: dict[str, list[Range]] = {name: [] for name in names}
    for sample in samples:
        values = [float(value) for value in session.run(outputs, sample)] if outputs else []
        inner = dict(zip(probed, zip(values[::2], values[1::2], strict=True), strict=True))
        for name in names:
            low, high = inner[name] if name in inner else (float(sample[name].min()), float(sample[name].max()))
            if not math.isfinite(low + high):
                raise BadInput(
                    f"tensor '{name}' is NaN or infinite for a calibration sample: check the float graphs and the clip,"
                    " then run the same command with --refresh calibrate"
                )
            extremes[name].append((low, high))
    return extremes


def choose_ranges(graph: Graph, groups: Sequence[Group], extremes: Extremes) -> dict[str, Range]:
    """Return one (low, high) per tensor: that of SAMPLE_SHARE of the samples, less what a following GELU silences."""
    silenced = gelu_inputs(graph, groups)
    return {name: choose_range(ends, math.prod(graph.shape(name)), name in silenced) for name, ends in extremes.items()}


def choose_range(ends: Sequence[Range], elements: int, silenced: bool) -> Range:
    """Return the range of a tensor of so many elements from its (low, high) of each sample; silenced: by a GELU."""
    share = SAMPLE_SHARE if elements >= LARGE_TENSOR else 1.0
    low = float(np.quantile([low for low, _ in ends], 1 - share))
    high = float(np.quantile([high for _, high in ends], share))
    return max(low, GELU_SILENCE) if silenced else low, high


def collect_ranges(model: object, groups: Sequence[Group], samples: Iterable[Tensors]) -> dict[str, Range]:
    """Run every sample (at least one) in float and return the range of each float tensor of the groups."""
    graph = model if isinstance(model, Graph) else Graph(model)
    return choose_ranges(graph, groups, collect_extremes(graph, quantized_tensors(graph, groups), samples))


def gelu_inputs(graph: Graph, groups: Sequence[Group]) -> set[str]:
    """Name the tensors that only GELUs read and that are no output of the graph."""
    by_gelus = {name for group in groups if group.kind == "gelu" for name in group.inputs}
    by_others = {name for group in groups if group.kind != "gelu" for name in group.inputs}
    return by_gelus - by_others - set(map(graph.root, graph.outputs))
