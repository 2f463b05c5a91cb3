"""Build the parts of a stand-in binary in an environment of public packages: convert, collect ranges, quantize."""

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nightjar.errors import BadInput
from nightjar.plugins.target_build import Entry, check_request, part_progress
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.ranges import Range, choose_range, gelu_inputs
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.audit import audit
from targets.mtk.graphs import PartGraph, build_parts, read_model, write_samples
from targets.mtk.lint import convert_parts, of_tflite
from targets.mtk.stand_in.options import NAME, Options
from targets.mtk.stand_in.toolchain import compile as inside
from targets.mtk.tflite import read
from targets.mtk.tflite_mapping import match_operators

FLOAT_BITS = 32


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.mtk.stand_in.compile` documents."""
    model = read_model(graphs)
    check_request(options.precision, calibration, plan, quantized)
    found = toolchain(NAME)
    versions = found.versions()
    toolkit = f"stand-in: litert-torch {versions.get('litert-torch')}, LiteRT {versions.get('ai-edge-litert')}"
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as scratch:

        @functools.cache
        def prepared() -> Path:
            if quantized is None:
                prepare(graphs, None if options.precision == "fp" else calibration, options, Path(scratch))
            return quantized or Path(scratch)

        def build_part(part: str, plan_tensors: list[str] | None, globs: list[str]) -> Entry:
            file = out / f"{part}.tflite"
            if plan_tensors is None:
                shutil.copyfile(prepared() / file.name, file)
            else:
                graph = PartGraph(graphs, model, part)
                bits = _operator_bits(graph, plan_tensors, globs, options.precision)
                _quantize(found, graph, prepared(), bits, file)
            refused = sorted({f"{finding.op} ({finding.why})" for finding in of_tflite(part, read(file))})
            note = f"the NPU would refuse it: {', '.join(refused)}; see `nightjar lint --target mtk`"
            notes = [note] if refused else []
            return {"file": file.name, **audit(file), "toolkit": toolkit, "notes": notes}

        build_parts(graphs, model, options, plan, out, NAME, build_part)


def prepare(graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Write every part in float, NAME.tflite, and its tensors' extremes over a calibration set, NAME.ranges.json."""
    model, found = read_model(graphs), toolchain(NAME)
    parts = list(model["parts"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        convert_parts(found, graphs, model, folder, to_quantize=calibration is not None)
        if calibration is not None:
            samples = CalibrationSet.open(calibration)
            for number, part in enumerate(parts):
                write_samples(samples, part, options.samples, folder / "samples")
                report, job = part_progress(number, len(parts)), {"kind": "extremes", "part": part}
                found.call(inside.__name__, job, folder, timeout_s=3600, on_progress=report)
                shutil.move(folder / "extremes.json", out / f"{part}.ranges.json")
                shutil.rmtree(folder / "samples")
        for part in parts:
            shutil.move(folder / f"{part}.tflite", out / f"{part}.tflite")


def _operator_bits(graph: PartGraph, plan_tensors: list[str], globs: list[str], precision: str) -> dict[str, int]:
    """Return the activation bits of each group, by its tensor; norms, `float_nodes` and constant masks stay float."""
    in_16bit = graph.check_plan(plan_tensors) | graph.masked_attention.keys()
    in_float = graph.match_float_nodes(globs) | {tensor for tensor, kind in graph.kinds.items() if kind == "norm"}
    in_float |= {tensor for tensor, is_constant in graph.masked_attention.items() if is_constant}
    bits = dict.fromkeys(graph.kinds, 16 if precision == "w8a16" else 8)
    return bits | dict.fromkeys(in_16bit, 16) | dict.fromkeys(in_float, FLOAT_BITS)


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
    names = {number: [model.tensors[tensor].name for tensor in op.outputs] for number, op in enumerate(model.ops)}
    numbered = sorted((number, bits[tensor]) for tensor, numbers in operators.items() for number in numbers)
    wanted = [[model.ops[number].op, names[number], n] for number, n in numbered if n != FLOAT_BITS]
    if not wanted:  # the quantizer refuses an empty list
        shutil.copyfile(source, out)
        return
    before_gelu = gelu_inputs(graph.graph, graph.groups) & operators.keys()  # a GELU silences part of their range
    silenced = {name for tensor in before_gelu for number in operators[tensor] for name in names[number]}
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in model.tensors if tensor.data is None}
    ranges = {  # of activations; the quantizer computes those of constants
        name: choose_range(ends, sizes[name], name in silenced) for name, ends in extremes.items() if name in sizes
    }
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        (folder / f"{part}.tflite").symlink_to(source.resolve())
        (folder / "ranges.json").write_text(json.dumps(ranges), encoding="utf-8")
        found.call(inside.__name__, {"kind": "quantize", "part": part, "ops": wanted}, folder, timeout_s=1800)
        shutil.move(folder / "quantized.tflite", out)
