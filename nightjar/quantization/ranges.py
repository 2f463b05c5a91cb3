"""Int8 ranges from calibration samples: what of a tensor's values 256 levels shall span.

Wider ranges cost resolution for every value, narrower ones cut the few at the ends. tiny.en's encoder, linears in int8,
40 clips of speakers that no range comes from, nats per decoder step: 0.0026 with the extremes of 24 or of 160 clips,
0.0017 by the two rules here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nightjar.errors import BadInput
from nightjar.graphs.fusion import Group
from nightjar.graphs.onnx_graph import Graph
from nightjar.quantization.calibration_set import Tensors

Range = tuple[float, float]
Extremes = Mapping[str, Sequence[Range]]

SHARE = 0.9  # of the samples whose extremes lie inside: a loud clip does not coarsen all the others
MANY = 2**15  # elements that make a sample's extremes a statistic; a decoder's step has fewer, and each counts
SILENT = -3.5  # GELU puts out -0.001 here and less below: what is cut off there is not missed (-2.5 costs 0.04 nats)


def quantized_tensors(graph: Graph, groups: Sequence[Group]) -> list[str]:
    """Name the float tensors that groups read, hold or put out."""
    wanted = {name for group in groups for name in (*group.inputs, *group.inner, group.tensor)}
    return sorted(name for name in wanted if graph.is_float(name))


def collect_extremes(graph: Graph, names: Sequence[str], samples: Iterable[Tensors]) -> dict[str, list[Range]]:
    """Run every sample in float and return its (low, high) of each tensor; NaN and infinity raise BadInput."""
    import onnx
    from onnx import TensorProto, helper

    from nightjar.quantization.fake_quantize import open_session

    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    probed = [name for name in names if name not in graph.inputs]
    del probe.graph.output[:]
    wanted = []
    for number, name in enumerate(probed):
        for op in ("ReduceMin", "ReduceMax"):  # in the graph: a tensor of megabytes need not leave it
            wanted.append(f"range.{op}.{number}")
            probe.graph.node.append(helper.make_node(op, [name], wanted[-1:], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(wanted[-1], TensorProto.FLOAT, []))
    session = open_session(probe)
    found: dict[str, list[Range]] = {name: [] for name in names}
    for sample in samples:
        values = [float(value) for value in session.run(wanted, sample)] if wanted else []
        ends = dict(zip(probed, zip(values[::2], values[1::2], strict=True), strict=True))
        for name in names:
            low, high = ends[name] if name in ends else (float(sample[name].min()), float(sample[name].max()))
            if not math.isfinite(low + high):
                raise BadInput(
                    f"tensor '{name}' is NaN or infinite for a calibration sample: check the float graphs and the clip,"
                    " then run the same command with --refresh calibrate"
                )
            found[name].append((low, high))
    return found


def choose_ranges(graph: Graph, groups: Sequence[Group], extremes: Extremes) -> dict[str, Range]:
    """Return one (low, high) per tensor: of SHARE of the samples, and nothing that a GELU behind would silence."""
    silenced = _read_by_gelu(graph, groups)
    settled = {}
    for name, ends in extremes.items():
        share = SHARE if math.prod(graph.shape(name)) >= MANY else 1.0
        low = float(np.quantile([low for low, _ in ends], 1 - share))
        high = float(np.quantile([high for _, high in ends], share))
        settled[name] = (max(low, SILENT) if name in silenced else low, high)
    return settled


def collect_ranges(model: object, groups: Sequence[Group], samples: Iterable[Tensors]) -> dict[str, Range]:
    """Run every sample (at least one) in float and return the range of each float tensor of the groups."""
    graph = model if isinstance(model, Graph) else Graph(model)
    return choose_ranges(graph, groups, collect_extremes(graph, quantized_tensors(graph, groups), samples))


def _read_by_gelu(graph: Graph, groups: Sequence[Group]) -> set[str]:
    """Name the tensors that GELUs read and nothing else."""
    readers: dict[str, set[str]] = {}
    for group in groups:
        for name in group.inputs:
            readers.setdefault(name, set()).add(group.kind)
    outputs = set(map(graph.root, graph.outputs))
    return {name for name, kinds in readers.items() if kinds == {"gelu"} and name not in outputs}
