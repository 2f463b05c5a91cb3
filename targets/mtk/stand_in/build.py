"""Build the parts of a stand-in binary in an environment of public packages: convert, collect ranges, quantize."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nightjar.errors import BadInput
from nightjar.plugins.target_build import (
    Entry,
    Plan,
    check_request,
    float_node_globs,
    part_progress,
    read_plan,
    require_products,
    write_binary,
)
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.ranges import Range, choose_range
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.audit import audit
from targets.mtk.graphs import PartGraph, read_model, write_samples
from targets.mtk.lint import of_tflite
from targets.mtk.stand_in.options import NAME, Options
from targets.mtk.stand_in.toolchain import compile as inside
from targets.mtk.tflite import Model, read
from targets.mtk.tflite_mapping import match_operators

CONVERT_S = 1800.0
COLLECT_S = 3600.0
FLOAT_BITS = 32


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.mtk.stand_in.compile` documents."""
    model = read_model(graphs)
    parts = list(model["parts"])
    check_request(options.precision, calibration, plan, quantized)
    globs = float_node_globs(options.float_nodes, parts)
    chosen = read_plan(plan, parts) if plan is not None else Plan({part: [] for part in parts})
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as scratch:
        if quantized is None:
            quantized = Path(scratch) / "quantized"
            _prepare(found, graphs, None if options.precision == "fp" else calibration, options, quantized)
        for number, part in enumerate(parts, 1):
            file = out / f"{part}.tflite"
            if options.precision == "fp" or part in chosen.whole_parts:
                shutil.copyfile(quantized / f"{part}.tflite", file)
            else:
                graph = PartGraph(graphs, model, part)
                bits = _operator_bits(graph, chosen.float_tensors[part], globs[part], options.precision)
                _quantize(found, graph, quantized, bits, file)
            entries[part] = _entry(model, part, file, found)
            if options.precision in ("int8", "w8a16"):
                require_products(part, options.precision, entries[part][f"{options.precision}_mac_share"])
            tick(number, len(parts))
    write_binary(graphs, model, entries, out, target=NAME, precision=options.precision)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Do what `targets.mtk.stand_in.quantization` documents."""
    _prepare(toolchain(NAME), graphs, calibration, options, out)


def _prepare(found: Toolchain, graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Write every part in float, NAME.tflite, and its tensors' extremes over a calibration set, NAME.ranges.json."""
    model = read_model(graphs)
    parts = list(model["parts"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        weights = [PartGraph(graphs, model, part).write_weights(folder) for part in parts]
        job = {"kind": "convert", "to_quantize": calibration is not None, "parts": weights}
        found.call(inside.__name__, job, folder, CONVERT_S)
        if calibration is not None:
            samples = CalibrationSet.open(calibration)
            for number, part in enumerate(parts):
                count = write_samples(samples, part, options.samples, folder / "samples")
                report = part_progress(number, len(parts))
                job = {"kind": "extremes", "part": part}
                found.call(inside.__name__, job, folder, COLLECT_S, on_progress=report)
                shutil.move(folder / "extremes.json", out / f"{part}.ranges.json")
                (out / f"{part}.samples.json").write_text(json.dumps({"samples": count}) + "\n", encoding="utf-8")
                shutil.rmtree(folder / "samples")
        for part in parts:
            shutil.move(folder / f"{part}.tflite", out / f"{part}.tflite")


def _operator_bits(graph: PartGraph, plan_tensors: list[str], globs: list[str], precision: str) -> dict[str, int]:
    """Return the activation bits of each group, by its tensor; norms, `float_nodes` and constant masks stay float."""
    in_16bit = graph.check_plan(plan_tensors) | graph.masked_attention.keys()
    in_float = graph.match_float_nodes(globs)
    bits = {}
    for tensor, kind in graph.kinds.items():
        bits[tensor] = 16 if precision == "w8a16" or tensor in in_16bit else 8
        if tensor in in_float or kind == "norm" or graph.masked_attention.get(tensor):
            bits[tensor] = FLOAT_BITS
    return bits


def _quantize(found: Toolchain, graph: PartGraph, quantized: Path, bits: Mapping[str, int], out: Path) -> None:
    """Quantize one part from its float .tflite and ranges in `quantized`."""
    part, source = graph.part, quantized / f"{graph.part}.tflite"
    model = read(source)
    operators = match_operators(graph.onnx, model)
    try:
        extremes: dict[str, list[Range]] = json.loads((quantized / f"{part}.ranges.json").read_text())
    except (OSError, ValueError) as exc:
        raise BadInput(
            f"{quantized / f'{part}.ranges.json'} cannot be read: ranges come with a float part; "
            "run the same command with --refresh quantize"
        ) from exc
    silenced = {
        name for tensor in graph.gelu_inputs() for number in operators[tensor] for name in _names(model, number)
    }
    numbered = sorted((number, bits[tensor]) for tensor, numbers in operators.items() for number in numbers)
    wanted = [[model.ops[number].op, _names(model, number), n] for number, n in numbered if n != FLOAT_BITS]
    if not wanted:  # the quantizer refuses an empty list
        shutil.copyfile(source, out)
        return
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        (folder / f"{part}.tflite").symlink_to(source.resolve())
        ranges = _choose_ranges(model, extremes, silenced)
        (folder / "ranges.json").write_text(json.dumps(ranges), encoding="utf-8")
        job = {"kind": "quantize", "part": part, "ops": wanted}
        found.call(inside.__name__, job, folder, CONVERT_S)
        shutil.move(folder / "quantized.tflite", out)


def _names(model: Model, number: int) -> list[str]:
    return [model.tensors[tensor].name for tensor in model.ops[number].outputs]


def _choose_ranges(model: Model, extremes: Mapping[str, list[Range]], silenced: set[str]) -> dict[str, Range]:
    """Return one (low, high) per activation; the quantizer computes those of constants."""
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in model.tensors if tensor.data is None}
    return {name: choose_range(ends, sizes[name], name in silenced) for name, ends in extremes.items() if name in sizes}


def _entry(model: Mapping[str, Any], part: str, file: Path, found: Toolchain) -> Entry:
    described = {kind: model["parts"][part][kind] for kind in ("inputs", "outputs")}
    versions = found.versions()
    toolkit = f"stand-in: litert-torch {versions.get('litert-torch')}, LiteRT {versions.get('ai-edge-litert')}"
    refused = sorted({f"{finding.op} ({finding.why})" for finding in of_tflite(part, read(file))})
    notes = [f"the NPU would refuse it: {', '.join(refused)}; see `nightjar lint --target mtk`"] if refused else []
    return {"runner": NAME, "file": file.name, **audit(file), "toolkit": toolkit, "notes": notes, **described}
