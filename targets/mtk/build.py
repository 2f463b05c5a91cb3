"""Make the parts of a binary with MediaTek's SDK: TorchScript and .tflite by its converter, .dla by ncc-tflite."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from nightjar.errors import BadOptions, Broken
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.audit import audit
from targets.mtk.graphs import (
    check_patterns,
    hand_over,
    kept_groups,
    kinds,
    masked_attention,
    read_model,
    read_plan,
    write_samples,
)
from targets.mtk.ncc import compile_dla
from targets.mtk.options import NAME, Options
from targets.mtk.precision import keep_sixteen
from targets.mtk.tflite import read
from targets.mtk.tflite_mapping import match
from targets.mtk.toolchain import compile as inside

CONVERT_S = 3600.0
INT8, W8A16 = "sym8W_asym8A", "sym8W_sym16A"  # MediaTek's names
OWN = "MTKEXT_"  # begins the operators that only MediaTek's runtime has


def build(graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None) -> None:
    """Do what `targets.mtk.compile` says."""
    model = read_model(graphs)
    parts = list(model["parts"])
    if options.precision == "auto" and plan is None:
        raise BadOptions(
            "--precision auto needs the plan of a precision search; build with --precision int8 or fp instead"
        )
    check_patterns(options.float_nodes, parts)
    kept = read_plan(plan, parts) if plan is not None else {part: [] for part in parts}
    if options.precision != "fp" and calibration is None:
        raise BadOptions("int8 needs calibration data: pass a calibration set, or build with --precision fp")
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for number, part in enumerate(parts, 1):
        samples = CalibrationSet.open(calibration) if calibration is not None else None
        keep = None if options.precision == "fp" else kept[part]
        with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
            said = _convert(found, graphs, part, samples, options, keep, Path(name))
            shutil.move(Path(name) / f"{part}.tflite", out / f"{part}.tflite")
            compiled = compile_dla(found, out / f"{part}.tflite", out / f"{part}.dla", options.soc, options.bridge)
        entries[part] = _entry(model, part, out, said, compiled, options)
        if options.precision in ("int8", "w8a16"):
            _require(part, options.precision, entries[part])
        tick(number, len(parts))
    for path in sorted(graphs.glob("*embedding*")):
        shutil.copyfile(path, out / path.name)
    for part in parts:
        model["parts"][part]["file"] = f"{part}.dla"
    (out / "model.json").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    description = {"target": NAME, "precision": options.precision, "parts": entries}
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _convert(
    found: Toolchain,
    graphs: Path,
    part: str,
    samples: CalibrationSet | None,
    options: Options,
    keep: list[str] | None,
    folder: Path,
) -> dict[str, Any]:
    """Trace and convert one part into `folder`; keep: None for float, else the groups with 16-bit activations."""
    job = {"kind": "convert", **hand_over(graphs, part, folder), "settings": {"quantize": False}, "config": ""}
    if keep is None or samples is None:
        return _called(found, job, graphs, part, folder)
    write_samples(samples, part, options.samples, folder / "samples")
    whole = W8A16 if options.precision == "w8a16" else INT8
    settings = {
        "quantize": True,
        "precision_proportion": {whole: 1.0},
        "use_per_output_channel_quantization": True,
        "prepend_input_quantize_ops": True,
        "append_output_dequantize_ops": True,
    }
    sixteen = _sixteen(graphs, part, keep, options) if whole == INT8 else set()
    if not sixteen:
        return _called(found, job | {"settings": settings}, graphs, part, folder)
    # Three conversions: a float one tells which tensor is whose, a quantized one writes down what it would do, and the
    # last does what that says after it was changed.
    _called(found, job, graphs, part, folder)
    model = read(folder / f"{part}.tflite")
    twins = match(onnx.load(graphs / read_model(graphs)["parts"][part]["file"]), model)
    seeded = _called(found, job | {"settings": settings, "config": "precision.json"}, graphs, part, folder)
    if "precision_config_file" in seeded["skipped"]:
        raise Broken(
            "this mtk_converter has no precision_config_file, so no layer can keep 16 bits: "
            "build with --precision w8a16 or fp, or install a newer one"
        )
    keep_sixteen(folder / "precision.json", model, twins, sixteen, W8A16)
    last = settings | {"precision_proportion": None}
    return _called(found, job | {"settings": last, "config": "precision.json"}, graphs, part, folder)


def _called(found: Toolchain, job: Mapping[str, Any], graphs: Path, part: str, folder: Path) -> dict[str, Any]:
    """Convert once, and see that the result is MediaTek's own kind of file where it should be."""
    said = found.call(inside.__name__, job, folder, CONVERT_S)
    own = [op.op for op in read(folder / f"{part}.tflite").ops if op.op.startswith(OWN)]
    norms = "norm" in kinds(graphs / read_model(graphs)["parts"][part]["file"]).values()
    if norms and not own:
        raise Broken(
            f"part '{part}' came out of mtk_converter without one {OWN} operator, so that a norm runs as a dozen: "
            "report it with the converter's version"
        )
    return said


def _sixteen(graphs: Path, part: str, keep: list[str], options: Options) -> set[str]:
    """Name the groups with 16-bit activations: of the plan, of `float_nodes`, and attention with a mask."""
    graph = graphs / read_model(graphs)["parts"][part]["file"]
    kept, named = kept_groups(graph, part, keep, options.float_nodes)
    return kept | named | set(masked_attention(graph))


def _entry(
    model: Mapping[str, Any],
    part: str,
    out: Path,
    said: Mapping[str, Any],
    compiled: Mapping[str, Any],
    options: Options,
) -> dict[str, Any]:
    described = {kind: model["parts"][part][kind] for kind in ("inputs", "outputs")}
    figures = audit(out / f"{part}.tflite")
    tflite, dla = figures["size_bytes"], (out / f"{part}.dla").stat().st_size
    plan = json.dumps(compiled["plan"], indent=1)
    (out / f"{part}.plan.json").write_text(plan + "\n", encoding="utf-8")
    return {
        "runner": NAME,
        "file": f"{part}.dla",
        **figures,
        "size_bytes": dla,
        "tflite": {"file": f"{part}.tflite", "size_bytes": tflite, "dla_ratio": round(dla / tflite, 4)},
        "off_npu": compiled["off_npu"],
        "plan": f"{part}.plan.json",
        "command": compiled["command"],
        "bridge": compiled["bridge"],
        "soc": options.soc,
        "toolkit": f"mtk_converter {said['converter']}, ncc-tflite {compiled['version']}",
        "attributes": said["attributes"],
        "skipped": said["skipped"],
        "notes": list(_notes(tflite, dla, compiled["off_npu"], said["skipped"])),
        **described,
    }


def _notes(tflite: int, dla: int, off_npu: Mapping[str, int], skipped: list[str]) -> Iterator[str]:
    """Say what a person who reads the report should know of a part."""
    yield f"{tflite / 1e6:.2f} MB of .tflite became {dla / 1e6:.2f} MB of .dla, {dla / tflite:.2f} of it"
    if off_npu:
        yield "not on the NPU: " + ", ".join(f"{count} {op}" for op, count in off_npu.items())
    if skipped:
        yield "settings that this mtk_converter has not: " + ", ".join(skipped)


def _require(part: str, precision: str, figures: Mapping[str, Any]) -> None:
    share = "int8_mac_share" if precision == "int8" else "w8a16_mac_share"
    if not figures[share]:
        raise Broken(
            f"part '{part}' came out without one {precision} product; "
            "keep fewer nodes float or build with --precision fp"
        )
