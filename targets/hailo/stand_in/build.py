"""Round the parts for the NPU, group by group, to 8 bits or to 16."""

from pathlib import Path
from typing import Any

import onnx

from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.target_build import Entry, Plan, check_request, read_plan, write_binary
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.fake_quantize import A16_W8, A16_W16, fake_quantize
from nightjar.quantization.ranges import Range, collect_ranges
from targets.hailo.graph import find_cut
from targets.hailo.known_windows import window_label, window_note
from targets.hailo.placement import cpu_part, read_model, tensors_16bit
from targets.hailo.stand_in.options import NAME, Options, read_ranges

SCHEMES = {"a16_w16": A16_W16, "a16_w8": A16_W8}


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.hailo.stand_in.compile` documents."""
    model = read_model(graphs, options)
    check_request(options.precision, calibration, plan, quantized)
    chosen = read_plan(plan, model["parts"]) if plan is not None else None
    ranges: dict[str, dict[str, Range]] = {}
    if options.precision != "fp" and quantized is not None:
        ranges = read_ranges(quantized)
    elif options.precision != "fp" and calibration is not None:
        ranges = collect(graphs, calibration, options)
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    for name, part in model["parts"].items():
        if name not in options.npu:
            entries[name] = cpu_part(graphs, name, part, model["recipe"]["decoder"] == "cached", out)
            continue
        exported = onnx.load(graphs / part["file"])
        find_cut(name, Graph(exported))  # raises for a graph that the DFC's parser does not take
        figures: dict[str, Any] = {
            "int8_mac_share": 0.0,
            "nodes_int8": 0,
            "nodes_total": len(quantizable_groups(exported)),
        }
        if name in ranges:
            exported, figures = round_part(name, exported, ranges[name], options, chosen)
        onnx.save(exported, out / part["file"])
        entries[name] = {
            "runner": NAME,
            "file": part["file"],
            "size_bytes": (out / part["file"]).stat().st_size,
            **figures,
            "window": window_label(model),
            "notes": [window_note(model), "the file has float weights: its size is not that of a .hef"],
        }
    described = {"precision": options.precision, "host_position_add": model["host_position_add"]}
    write_binary(graphs, model, entries, out, target=NAME, **described)


def round_part(
    part: str, exported: Any, ranges: dict[str, Range], options: Options, plan: Plan | None
) -> tuple[Any, dict[str, Any]]:
    """Return a part with every group rounded, and its figures for binary.json."""
    graph, groups = Graph(exported), quantizable_groups(exported)
    in_16bit = tensors_16bit(part, groups, options, plan)
    schemes = {group.tensor: SCHEMES[options.wide] for group in groups if group.tensor in in_16bit}
    model = fake_quantize(graph, groups, ranges, outputs=True, schemes=schemes)
    macs = sum(group.macs for group in groups)
    in_8bit = sum(group.macs for group in groups if group.tensor not in in_16bit)
    return model, {
        "int8_mac_share": round(in_8bit / macs, 4) if macs else 0.0,
        "nodes_int8": len(groups) - len(schemes),
        "nodes_total": len(groups),
        "schemes": {"a8_w8": len(groups) - len(schemes), options.wide: len(schemes)},
    }


def collect(graphs: Path, calibration: Path, options: Options) -> dict[str, dict[str, Range]]:
    """Collect the ranges of every part for the NPU."""
    model, samples = read_model(graphs, options), CalibrationSet.open(calibration)
    found: dict[str, dict[str, Range]] = {}
    for number, name in enumerate(options.npu):
        exported = onnx.load(graphs / model["parts"][name]["file"])
        taken = samples.samples(name, min(options.range_samples, samples.count(name)))
        found[name] = collect_ranges(exported, quantizable_groups(exported), taken)
        tick(number + 1, len(options.npu))
    return found
