"""Round the parts for the NPU, group by group, to 8 bits or to 16."""

from pathlib import Path

from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_file import load_model, save_model
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.target_build import Entry, check_request, read_plan
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.fake_quantize import A16_W8, A16_W16, fake_quantize
from nightjar.quantization.ranges import Range, collect_ranges
from targets.hailo.graph import find_cut
from targets.hailo.known_windows import window_label, window_note
from targets.hailo.placement import build_parts, read_model, tensors_16bit
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

    def npu_part(part: str) -> Entry:
        file = model["parts"][part]["file"]
        exported = load_model(graphs / file)
        graph, groups = Graph(exported), quantizable_groups(exported)
        find_cut(part, graph)  # raises for a graph that the DFC's parser does not take
        in_8bit, schemes = [], {}
        if part in ranges:
            wide = tensors_16bit(part, groups, options, chosen)
            in_8bit = [group for group in groups if group.tensor not in wide]
            by_tensor = {group.tensor: SCHEMES[options.wide] for group in groups if group.tensor in wide}
            exported = fake_quantize(graph, groups, ranges[part], outputs=True, schemes=by_tensor)
            schemes = {"schemes": {"a8_w8": len(in_8bit), options.wide: len(by_tensor)}}
        save_model(exported, out / file)
        macs = sum(group.macs for group in groups)
        return {
            "file": file,
            "int8_mac_share": round(sum(group.macs for group in in_8bit) / macs, 4) if macs else 0.0,
            "nodes_int8": len(in_8bit),
            "nodes_total": len(groups),
            **schemes,
            "window": window_label(model),
            "notes": [window_note(model), "the file has float weights: its size is not that of a .hef"],
        }

    build_parts(graphs, model, options.npu, out, npu_part, target=NAME, precision=options.precision)


def collect(graphs: Path, calibration: Path, options: Options) -> dict[str, dict[str, Range]]:
    """Collect the ranges of every part for the NPU."""
    model, samples = read_model(graphs, options), CalibrationSet.open(calibration)
    found: dict[str, dict[str, Range]] = {}
    for number, part in enumerate(options.npu, 1):
        exported = load_model(graphs / model["parts"][part]["file"])
        taken = samples.samples(part, options.range_samples)
        found[part] = collect_ranges(exported, quantizable_groups(exported), taken)
        tick(number, len(options.npu))
    return found
