"""Give the toolkit our ranges: one sample goes through it, all the others through onnxruntime, thirty times as fast.

The toolkit takes `min` and `max` of a .quantization.cfg as they stand, and derives scale and zero point anew.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import onnx

from nightjar.graphs.fusion import Group, quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.quantization.calibration_set import Tensors
from nightjar.quantization.ranges import Range, choose_ranges, collect_extremes, quantized_tensors

log = logging.getLogger(__name__)

SELECTING = frozenset({"Slice", "Split", "Gather"})
SAME = 2e-3  # of a range: what both compute of one sample differs by less; two tensors' ends hardly ever do
ENTRY = re.compile(r"^    (\S.*):\n((?:     .*\n)+)", re.MULTILINE)
ENDS = re.compile(r"        min:\n        -   (\S+)\n        max:\n        -   (\S+)\n")
SEEN = re.compile(
    r"        ori_min:\n        -   (\S+)\n        ori_max:\n        -   (\S+)\n"
)  # not widened to hold zero


def write_ranges(
    quantization_cfg: Path,
    model: onnx.ModelProto,
    seen: Tensors,
    samples: Iterable[Tensors],
    called: Mapping[str, str],
) -> int:
    """Put ranges over all samples into a .quantization.cfg that the toolkit made of one; return how many.

    Which of its tensors is which of the graph's is told by the ends that the sample seen gave both: it renames, fuses
    and moves, and keeps values. What has no twin (weights, what it made itself) stays as it is. called: what the
    toolkit calls the graph's tensors, which decides between twins: a first step's key is all that is in its cache.
    What is cut out of a tensor may be a twin too: a slice of one sample is narrower than its whole, and would cut all
    the others.
    """
    graph = Graph(model)
    groups = quantizable_groups(model)
    extremes = collect_extremes(graph, _told(graph, groups), chain([seen], samples))
    settled = choose_ranges(graph, groups, {name: ends[1:] for name, ends in extremes.items()})
    first = {name: ends[0] for name, ends in extremes.items()}
    count = 0

    def replaced(entry: re.Match[str]) -> str:
        nonlocal count
        ends = ENDS.search(entry[2])
        own = entry[1].strip('"')
        if ends is None or graph.is_constant(own):
            return entry[0]
        narrower = SEEN.search(entry[2])
        near = _near(ends, first) or (_near(narrower, first) if narrower else [])
        twin = next((name for name in near if called.get(name) == own), near[0] if near else None)
        if twin is None:
            return entry[0]
        count += 1
        low, high = (np.format_float_positional(end, trim="0") for end in settled[twin])
        return entry[0].replace(ends[0], f"        min:\n        -   {low}\n        max:\n        -   {high}\n", 1)

    text = ENTRY.sub(replaced, quantization_cfg.read_text(encoding="utf-8"))
    quantization_cfg.write_text(text, encoding="utf-8")
    log.info("%s: %d ranges over %d samples", quantization_cfg.name, count, len(extremes[next(iter(extremes))]) - 1)
    return count


def _told(graph: Graph, groups: Sequence[Group]) -> list[str]:
    """Name the tensors by whose ends the toolkit's are known: what is rounded, and what is given or cut out of it."""
    cut = (name for node in graph.nodes if node.op_type in SELECTING for name in node.output)
    return sorted({*quantized_tensors(graph, groups), *filter(graph.is_float, (*graph.inputs, *cut))})


def _near(found: re.Match[str], of: Mapping[str, Range]) -> list[str]:
    """Name the tensors whose ends are these, the nearest first."""
    least, most = float(found[1]), float(found[2])
    near = SAME * max(most - least, 1e-6)
    far = {name: max(abs(low - least), abs(high - most)) for name, (low, high) in of.items()}
    return sorted((name for name in far if far[name] <= near), key=lambda name: far[name])
