"""Make the parts of a stand-in binary in an environment of public packages: convert, collect ranges, quantize."""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nightjar.errors import BadInput, BadOptions, Broken
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.ranges import GELU_SILENCE, LARGE_TENSOR, SAMPLE_SHARE
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.audit import audit
from targets.mtk.graphs import (
    check_patterns,
    gelu_inputs,
    hand_over,
    kept_groups,
    kinds,
    masked_attention,
    read_model,
    read_plan,
    write_samples,
)
from targets.mtk.lint import of_tflite
from targets.mtk.stand_in.options import NAME, Options
from targets.mtk.stand_in.toolchain import compile as inside
from targets.mtk.tflite import Model, read
from targets.mtk.tflite_mapping import match

CONVERT_S = 1800.0
COLLECT_S = 3600.0
FLOAT = 32


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.mtk.stand_in.compile` says."""
    model = read_model(graphs)
    parts = list(model["parts"])
    if options.precision == "auto" and plan is None:
        raise BadOptions(
            "--precision auto needs the plan of a precision search; build with --precision int8 or fp instead"
        )
    check_patterns(options.float_nodes, parts)
    kept = read_plan(plan, parts) if plan is not None else {part: [] for part in parts}
    if options.precision != "fp" and quantized is None and calibration is None:
        raise BadOptions("int8 needs calibration data: pass a calibration set, or build with --precision fp")
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as scratch:
        made = quantized
        if made is None:
            made = Path(scratch) / "quantized"
            samples = None if options.precision == "fp" or calibration is None else calibration
            _prepare(found, graphs, samples, options, made)
        for number, part in enumerate(parts, 1):
            file, keep = out / f"{part}.tflite", kept[part]
            if options.precision == "fp" or keep is None:
                shutil.copyfile(made / f"{part}.tflite", file)
            else:
                _quantize(found, graphs / model["parts"][part]["file"], made, part, keep, options, file)
            entries[part] = _entry(model, part, file, found)
            if options.precision in ("int8", "w8a16"):
                _require(part, options.precision, entries[part])
            tick(number, len(parts))
    for path in sorted(graphs.glob("*embedding*")):
        shutil.copyfile(path, out / path.name)
    for part in parts:
        model["parts"][part]["file"] = f"{part}.tflite"
    (out / "model.json").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    description = {"target": NAME, "precision": options.precision, "parts": entries}
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Do what `targets.mtk.stand_in.quantization` says."""
    _prepare(toolchain(NAME), graphs, calibration, options, out)


def _prepare(found: Toolchain, graphs: Path, calibration: Path | None, options: Options, out: Path) -> None:
    """Write every part in float, NAME.tflite, and of a calibration set its tensors' extremes, NAME.ranges.json."""
    samples = CalibrationSet.open(calibration) if calibration is not None else None
    parts = list(read_model(graphs)["parts"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        given = [hand_over(graphs, part, folder) for part in parts]
        job = {"kind": "convert", "to_quantize": samples is not None, "parts": given}
        found.call(inside.__name__, job, folder, CONVERT_S)
        for number, part in enumerate(parts):
            if samples is None:
                break
            count = write_samples(samples, part, options.samples, folder / "samples")

            def show(what: str, done: int, total: int, before: int = number) -> None:
                tick(100 * before + 100 * done // total, 100 * len(parts))

            found.call(inside.__name__, {"kind": "extremes", "part": part}, folder, COLLECT_S, on_progress=show)
            shutil.move(folder / "extremes.json", out / f"{part}.ranges.json")
            (out / f"{part}.samples.json").write_text(json.dumps({"samples": count}) + "\n", encoding="utf-8")
            shutil.rmtree(folder / "samples")
        for part in parts:
            shutil.move(folder / f"{part}.tflite", out / f"{part}.tflite")


def _quantize(
    found: Toolchain, graph: Path, made: Path, part: str, keep: list[str], options: Options, out: Path
) -> None:
    """Quantize one part: kept groups with 16-bit activations; `float_nodes`, norms and constant masks float."""
    model = read(made / f"{part}.tflite")
    twins = match(onnx.load(graph), model)
    kept, named = kept_groups(graph, part, keep, options.float_nodes)
    masked, of_group = masked_attention(graph), {}
    for tensor, kind in kinds(graph).items():
        of_group[tensor] = 16 if options.precision == "w8a16" or tensor in kept or tensor in masked else 8
        if tensor in named or kind == "norm" or masked.get(tensor):
            of_group[tensor] = FLOAT
    bits = {number: of_group[tensor] for tensor, numbers in twins.items() for number in numbers}
    try:
        extremes: dict[str, list[tuple[float, float]]] = json.loads((made / f"{part}.ranges.json").read_text())
    except (OSError, ValueError) as exc:
        raise BadInput(
            f"{made / f'{part}.ranges.json'} cannot be read: ranges come with a float part; "
            "run the same command with --refresh quantize"
        ) from exc
    silenced = {number for tensor in gelu_inputs(graph) for number in twins[tensor]}
    with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
        folder = Path(name)
        (folder / f"{part}.tflite").symlink_to((made / f"{part}.tflite").resolve())
        (folder / "ranges.json").write_text(json.dumps(_settled(model, extremes, silenced)), encoding="utf-8")
        wanted = [[model.ops[number].op, _names(model, number), b] for number, b in sorted(bits.items()) if b != FLOAT]
        if not wanted:  # the quantizer has no word for nothing
            shutil.copyfile(made / f"{part}.tflite", out)
            return
        job = {"kind": "quantize", "part": part, "ops": wanted}
        found.call(inside.__name__, job, folder, CONVERT_S)
        shutil.move(folder / "quantized.tflite", out)


def _names(model: Model, number: int) -> list[str]:
    return [model.tensors[tensor].name for tensor in model.ops[number].outputs]


def _settled(
    model: Model, extremes: dict[str, list[tuple[float, float]]], silenced: set[int]
) -> dict[str, tuple[float, float]]:
    """Return one (low, high) per tensor, by the rules of nightjar/quantization/ranges.py."""
    quiet = {model.tensors[t].name for number in silenced for t in model.ops[number].outputs}
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in model.tensors if tensor.buffer is None}
    settled = {}
    for name, ends in extremes.items():
        if name not in sizes:  # a constant: the quantizer looks at it itself
            continue
        share = SAMPLE_SHARE if sizes[name] >= LARGE_TENSOR else 1.0
        low = float(np.quantile([low for low, _ in ends], 1 - share))
        high = float(np.quantile([high for _, high in ends], share))
        settled[name] = (max(low, GELU_SILENCE) if name in quiet else low, high)
    return settled


def _entry(model: dict[str, Any], part: str, file: Path, found: Toolchain) -> dict[str, Any]:
    described = {kind: model["parts"][part][kind] for kind in ("inputs", "outputs")}
    versions = found.versions()
    toolkit = f"stand-in: litert-torch {versions.get('litert-torch')}, LiteRT {versions.get('ai-edge-litert')}"
    refused = sorted({f"{finding.op} ({finding.why})" for finding in of_tflite(part, read(file))})
    notes = [f"the NPU would refuse it: {', '.join(refused)}; see `nightjar lint --target mtk`"] if refused else []
    return {"runner": NAME, "file": file.name, **audit(file), "toolkit": toolkit, "notes": notes, **described}


def _require(part: str, precision: str, figures: dict[str, Any]) -> None:
    share = "int8_mac_share" if precision == "int8" else "w8a16_mac_share"
    if not figures[share]:
        raise Broken(
            f"part '{part}' came out without one {precision} product; "
            "keep fewer nodes float or build with --precision fp"
        )
