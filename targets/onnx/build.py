"""Make the parts of a binary: float graphs with fused attention, or graphs quantized with their calibration samples."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nightjar.device.part_io import first_line
from nightjar.errors import Broken
from nightjar.graphs.onnx_file import copy_graph, save_model
from nightjar.graphs.onnx_graph import load_graph
from nightjar.graphs.onnx_session import open_session
from nightjar.plugins.target_build import (
    Entry,
    check_request,
    float_node_globs,
    match_float_nodes,
    read_model,
    write_binary,
)
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet, RunningHistogram
from targets.onnx.attention_fusion import fuse_attention
from targets.onnx.audit import audit, count_integer_kernels
from targets.onnx.batched_decoder import count_lanes, free_lanes
from targets.onnx.options import NAME, Options
from targets.onnx.quantize import collect_ranges, float_by_rule, linear_nodes, quantize


def build(graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Do what `targets.onnx.compile` documents."""
    model = read_model(graphs, NAME, "pass --target torchscript, or ")
    check_request(options.precision, calibration, None)
    files = {name: part["file"] for name, part in model["parts"].items()}
    out.mkdir(parents=True, exist_ok=True)
    if calibration is None or options.precision == "fp":
        entries = {name: fuse_part(graphs / file, out / file) for name, file in files.items()}
    else:
        entries = quantize_parts(graphs, files, calibration, options, out)
    if model["recipe"]["decoder"] == "cached":
        decoder = entries["decoder"]
        decoder |= open_lanes(out / files["decoder"], model["parts"]["decoder"], int(decoder["nodes_run_int8"]))
    write_binary(graphs, model, entries, out, target=NAME, precision=options.precision)


def fuse_part(graph: Path, file: Path) -> Entry:
    """Write a float graph with its attention fused; return its entry. Broken where onnxruntime cannot load it."""
    try:
        open_session(graph)
    except Exception as exc:  # onnxruntime raises classes of its own, without a base
        advice = "run the same command with --refresh export"
        raise Broken(f"onnxruntime cannot load {graph}: {first_line(exc)}; {advice}") from exc
    model = load_graph(graph)
    if fuse_attention(model):
        save_model(model, file)
    else:
        copy_graph(graph, file.parent)
    return {"file": file.name, **audit(file)}


def open_lanes(file: Path, decoder: Mapping[str, Any], kernels: int = 0) -> Entry:
    """Let a `cached` decoder of so many integer kernels take several clips in a run; return what its entry gains."""
    lanes = count_lanes(decoder)
    if lanes == 1:
        return {}
    single = file.read_bytes()
    free_lanes(file, lanes)
    if kernels and count_integer_kernels(file) < kernels:  # this optimiser needs fixed shapes: int8 before speed
        file.write_bytes(single)
        return {}
    return {"lanes": lanes}


def quantize_parts(
    graphs: Path, files: Mapping[str, str], calibration: Path, options: Options, out: Path
) -> dict[str, Entry]:
    """Quantize every part with its own calibration samples, one sample in memory at a time; return the entries."""
    found = CalibrationSet.open(calibration)
    globs = float_node_globs(options.float_nodes, files)
    steps, total = itertools.count(1), sum(found.count(part) for part in files)

    def counted(samples: Iterable[Any]) -> Iterator[Any]:
        for sample in samples:
            yield sample
            tick(next(steps), total)

    entries = {}
    for part, file in files.items():
        model = load_graph(graphs / file)
        nodes = {node.name: node for node in linear_nodes(model)}
        in_float = set(float_by_rule(model)) if options.float_rules else set()
        in_float.update(match_float_nodes(part, globs[part], {name: name for name in nodes}, nodes))
        inputs = {name: node.input[0] for name, node in nodes.items() if name not in in_float}
        histograms = collect_ranges(model, inputs.values(), counted(found.samples(part)))
        ranges = {name: _range(histogram, options) for name, histogram in histograms.items()}
        save_model(quantize(model, inputs, ranges, options.per_channel), out / file)
        entries[part] = {"file": file, **audit(out / file)}
        if not entries[part]["nodes_int8"]:
            raise Broken(
                f"part '{part}' came out without one int8 layer; keep fewer nodes float or build with --precision fp"
            )
    return entries


def _range(histogram: RunningHistogram, options: Options) -> tuple[float, float]:
    if options.method == "percentile":
        return histogram.percentile(100 - options.percentile), histogram.percentile(options.percentile)
    return histogram.low, histogram.high
