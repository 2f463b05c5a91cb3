"""Round the parts that would be on the NPU, group by group, to 8 bits or to 16."""

from pathlib import Path
from typing import Any

import onnx

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.fake_quantize import A16_W8, A16_W16, fake_quantize
from nightjar.quantization.ranges import Range, collect_ranges
from targets.hailo.graph import cut
from targets.hailo.known_windows import window_label, window_note
from targets.hailo.placement import Entry, cpu_part, read_model, wide_tensors, write_binary
from targets.hailo.stand_in.options import NAME, Options, read_ranges

SCHEMES = {"a16_w16": A16_W16, "a16_w8": A16_W8}


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.hailo.stand_in.compile` says."""
    model = read_model(graphs, options)
    if options.precision == "auto" and plan is None:
        raise BadOptions(
            "--precision auto needs the plan of a precision search; build with --precision int8 or fp instead"
        )
    ranges: dict[str, dict[str, Range]] = {}
    if options.precision != "fp":
        if quantized is not None:
            ranges = read_ranges(quantized)
        elif calibration is not None:
            ranges = collect(graphs, calibration, options)
        else:
            raise BadOptions("int8 needs calibration data: pass a calibration set, or build with --precision fp")
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    for name, part in model["parts"].items():
        if name not in options.npu:
            entries[name] = cpu_part(graphs, name, part, model["recipe"]["decoder"] == "cached", out)
            continue
        exported = onnx.load(graphs / part["file"])
        cut(name, Graph(exported))  # what the DFC's parser would not take is refused here too
        figures: dict[str, Any] = {
            "int8_mac_share": 0.0,
            "nodes_int8": 0,
            "nodes_total": len(quantizable_groups(exported)),
        }
        if name in ranges:
            exported, figures = rounded(name, exported, ranges[name], options, plan)
        onnx.save(exported, out / part["file"])
        entries[name] = {
            "runner": NAME,
            "file": part["file"],
            "size_bytes": (out / part["file"]).stat().st_size,  # float weights: nothing of a .hef's size
            **figures,
            "window": window_label(model),
            "notes": [window_note(model), "the file has float weights: its size is none of a .hef"],
        }
    write_binary(graphs, model, entries, NAME, options.precision, out)


def rounded(
    part: str, exported: Any, ranges: dict[str, Range], options: Options, plan: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Return a part with every group in integers, and what of it is a8_w8."""
    graph, groups = Graph(exported), quantizable_groups(exported)
    wide = wide_tensors(part, groups, options, plan)
    schemes = {group.tensor: SCHEMES[options.wide] for group in groups if group.tensor in wide}
    model = fake_quantize(graph, groups, ranges, outputs=True, schemes=schemes)
    macs = sum(group.macs for group in groups)
    narrow = sum(group.macs for group in groups if group.tensor not in wide)
    return model, {
        "int8_mac_share": round(narrow / macs, 4) if macs else 0.0,
        "nodes_int8": len(groups) - len(schemes),
        "nodes_total": len(groups),
        "schemes": {"a8_w8": len(groups) - len(schemes), options.wide: len(schemes)},
    }


def collect(graphs: Path, calibration: Path, options: Options) -> dict[str, dict[str, Range]]:
    """Collect the ranges of every part that would be on the NPU."""
    model, samples = read_model(graphs, options), CalibrationSet.open(calibration)
    found: dict[str, dict[str, Range]] = {}
    for number, name in enumerate(options.npu):
        exported = onnx.load(graphs / model["parts"][name]["file"])
        taken = samples.samples(name, min(options.range_samples, samples.count(name)))
        found[name] = collect_ranges(exported, quantizable_groups(exported), taken)
        tick(number + 1, len(options.npu))
    return found
