"""Make the parts of a binary: float graphs with fused attention, or graphs quantized with their calibration samples."""

import fnmatch
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from nightjar.errors import BadOptions, Broken
from nightjar.graphs.onnx_graph import load_graph
from nightjar.graphs.onnx_session import open_session
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet, RunningHistogram, Tensors
from targets.onnx.attention_fusion import fuse_attention
from targets.onnx.audit import audit, count_integer_kernels
from targets.onnx.batched_decoder import count_lanes, free_lanes
from targets.onnx.options import Options
from targets.onnx.quantize import collect_ranges, float_by_rule, linear_nodes, quantize

Audit = dict[str, Any]


def fuse_part(graph: Path, file: Path) -> Audit:
    """Write a float graph with its attention fused and return its audit; Broken where onnxruntime cannot load it."""
    try:
        open_session(graph)
    except Exception as exc:  # onnxruntime raises classes of its own, without a base
        reason = str(exc).strip().splitlines()[0][:300]
        raise Broken(f"onnxruntime cannot load {graph}: {reason}; run the same command with --refresh export") from exc
    model = load_graph(graph)
    if fuse_attention(model):
        onnx.save(model, file)
    else:
        shutil.copyfile(graph, file)
    return audit(file)


def open_lanes(file: Path, decoder: Mapping[str, Any]) -> Audit:
    """Let a `cached` decoder take several clips in one run; return what that changes in its audit."""
    lanes = count_lanes(decoder)
    if lanes == 1:
        return {}
    single, kernels = file.read_bytes(), count_integer_kernels(file)
    free_lanes(file, lanes)
    if count_integer_kernels(file) < kernels:  # this optimiser needs fixed shapes: int8 before speed
        file.write_bytes(single)
        return {}
    return {"lanes": lanes, "size_bytes": file.stat().st_size}


def quantize_parts(
    graphs: Path, files: Mapping[str, str], calibration: Path, options: Options, out: Path
) -> dict[str, Audit]:
    """Quantize every part with its own calibration samples, one sample in memory at a time; return the audits."""
    samples = CalibrationSet.open(calibration)
    patterns = _patterns(options.float_nodes, files)
    total = sum(samples.count(part) for part in files)
    done = 0
    audits = {}
    for part, file in files.items():
        model = load_graph(graphs / file)
        nodes = {node.name: node for node in linear_nodes(model)}
        float_nodes = set(float_by_rule(model)) if options.float_rules else set()
        for pattern in patterns[part]:
            matching = fnmatch.filter(nodes, pattern)
            if not matching:
                raise BadOptions(
                    f"float_nodes '{part}:{pattern}' fits no layer that could be int8; {part} has {', '.join(nodes)}"
                )
            float_nodes.update(matching)
        wanted = [name for name in nodes if name not in float_nodes]
        if not wanted:
            raise _no_int8(part)
        inputs = (nodes[name].input[0] for name in wanted)
        histograms = collect_ranges(model, inputs, _report_progress(samples.samples(part), done, total))
        done += samples.count(part)
        ranges = {name: _range(histogram, options) for name, histogram in histograms.items()}
        (out / file).write_bytes(quantize(model, wanted, ranges, options.per_channel).SerializeToString())
        audits[part] = audit(out / file)
        if not audits[part]["nodes_int8"]:
            raise _no_int8(part)
    return audits


def _no_int8(part: str) -> Broken:
    return Broken(f"part '{part}' came out without one int8 layer; keep fewer nodes float or build with --precision fp")


def _range(histogram: RunningHistogram, options: Options) -> tuple[float, float]:
    if options.method == "percentile":
        return histogram.percentile(100 - options.percentile), histogram.percentile(options.percentile)
    return histogram.low, histogram.high


def _patterns(float_nodes: tuple[str, ...], parts: Mapping[str, str]) -> dict[str, list[str]]:
    patterns: dict[str, list[str]] = {part: [] for part in parts}
    for entry in float_nodes:
        part, _, pattern = entry.partition(":")
        if part not in patterns or not pattern:
            raise BadOptions(f"float_nodes '{entry}' is not PART:GLOB with a PART of {', '.join(parts)}")
        patterns[part].append(pattern)
    return patterns


def _report_progress(samples: Iterator[Tensors], done: int, total: int) -> Iterator[Tensors]:
    for number, sample in enumerate(samples, 1):
        yield sample
        tick(done + number, total)
