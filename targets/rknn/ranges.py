"""Replace the toolkit's activation ranges: it processes one sample, onnxruntime all of them, thirty times as fast.

The toolkit uses `min` and `max` of a .quantization.cfg as they are, and computes scale and zero point from them.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import onnx

from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.quantization.calibration_set import Tensors
from nightjar.quantization.ranges import Range, choose_ranges, collect_extremes, quantized_tensors

log = logging.getLogger(__name__)

TOLERANCE = 2e-3  # of a range: both compute one sample to within this; ranges of two tensors hardly ever are that close
ENTRY = re.compile(r"^    (\S.*):\n((?:     .*\n)+)", re.MULTILINE)
ENDS = re.compile(r"        min:\n        -   (\S+)\n        max:\n        -   (\S+)\n")
# Not widened to hold zero.
ORIGINAL_ENDS = re.compile(r"        ori_min:\n        -   (\S+)\n        ori_max:\n        -   (\S+)\n")


def write_ranges(
    quantization_cfg: Path,
    model: onnx.ModelProto,
    first: Tensors,
    samples: Iterable[Tensors],
    toolkit_names: Mapping[str, str],
) -> int:
    """Write ranges over all samples into the .quantization.cfg that the toolkit made of the sample `first`.

    The toolkit renames, fuses and moves tensors and keeps their values, so a tensor of the graph is found by its range
    in `first`. toolkit_names decides between tensors of the same range: the key of a first step is all of its cache.
    Tensors without a match (weights, what the toolkit added) keep their range. Slices are compared too: a slice has a
    narrower range in one sample than its source, which would clip the other samples. Return how many were replaced.
    """
    graph, groups = Graph(model), quantizable_groups(model)
    slices = (name for node in graph.nodes if node.op_type in ("Slice", "Split", "Gather") for name in node.output)
    compared = {*quantized_tensors(graph, groups), *filter(graph.is_float, (*graph.inputs, *slices))}
    extremes = collect_extremes(graph, sorted(compared), chain([first], samples))
    settled = choose_ranges(graph, groups, {name: ends[1:] for name, ends in extremes.items()})
    in_first = {name: ends[0] for name, ends in extremes.items()}
    count = 0

    def replace(entry: re.Match[str]) -> str:
        nonlocal count
        ends, own = ENDS.search(entry[2]), entry[1].strip('"')
        if ends is None or graph.is_constant(own):
            return entry[0]
        original = ORIGINAL_ENDS.search(entry[2])
        near = _tensors_of_range(ends, in_first) or (_tensors_of_range(original, in_first) if original else [])
        if not near:
            return entry[0]
        tensor = next((name for name in near if toolkit_names.get(name) == own), near[0])
        count += 1
        low, high = (np.format_float_positional(end, trim="0") for end in settled[tensor])
        return entry[0].replace(ends[0], f"        min:\n        -   {low}\n        max:\n        -   {high}\n", 1)

    text = ENTRY.sub(replace, quantization_cfg.read_text(encoding="utf-8"))
    quantization_cfg.write_text(text, encoding="utf-8")
    log.info("%s: %d ranges over %d samples", quantization_cfg.name, count, len(extremes[next(iter(extremes))]) - 1)
    return count


def _tensors_of_range(ends: re.Match[str], ranges: Mapping[str, Range]) -> list[str]:
    """Name the tensors of this range, the nearest first.

    A tensor of one value has a range without width: both sides round that value.
    """
    least, most = float(ends[1]), float(ends[2])
    limit = TOLERANCE * max(most - least, 1e-3 * max(abs(least), abs(most)), 1e-6)
    distance = {name: max(abs(low - least), abs(high - most)) for name, (low, high) in ranges.items()}
    return sorted((name for name in distance if distance[name] <= limit), key=lambda name: distance[name])
