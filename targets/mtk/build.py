"""Build the parts of a binary with MediaTek's SDK: TorchScript and .tflite by its converter, .dla by ncc-tflite."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nightjar.errors import Broken
from nightjar.plugins.target_build import (
    Entry,
    Plan,
    check_request,
    float_node_globs,
    read_plan,
    require_products,
    write_binary,
)
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.audit import audit
from targets.mtk.graphs import PartGraph, read_model, write_samples
from targets.mtk.ncc import compile_dla
from targets.mtk.options import NAME, Options
from targets.mtk.precision import set_16bit_activations
from targets.mtk.tflite import read
from targets.mtk.tflite_mapping import match_operators
from targets.mtk.toolchain import compile as inside

CONVERT_S = 3600.0
INT8, W8A16 = "sym8W_asym8A", "sym8W_sym16A"  # MediaTek's names
OWN = "MTKEXT_"  # prefix of the operators that only MediaTek's runtime has
CONFIG = "precision.json"


def build(graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None) -> None:
    """Do what `targets.mtk.compile` documents."""
    model = read_model(graphs)
    parts = list(model["parts"])
    check_request(options.precision, calibration, plan)
    globs = float_node_globs(options.float_nodes, parts)
    chosen = read_plan(plan, parts) if plan is not None else Plan({part: [] for part in parts})
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for number, part in enumerate(parts, 1):
        with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
            converter = PartConverter(found, PartGraph(graphs, model, part), Path(name))
            if options.precision == "fp" or part in chosen.whole_parts or calibration is None:
                result = converter.convert({"quantize": False})
            else:
                samples = CalibrationSet.open(calibration)
                result = converter.quantize(samples, chosen.float_tensors[part], globs[part], options)
            shutil.move(converter.file, out / f"{part}.tflite")
        dla = compile_dla(found, out / f"{part}.tflite", out / f"{part}.dla", options.soc, options.bridge)
        entries[part] = _entry(model, part, out, result, dla, options)
        if options.precision in ("int8", "w8a16"):
            require_products(part, options.precision, entries[part][f"{options.precision}_mac_share"])
        tick(number, len(parts))
    write_binary(graphs, model, entries, out, target=NAME, precision=options.precision)


class PartConverter:
    """Trace and convert one part with mtk_converter, in a folder of its own."""

    def __init__(self, found: Toolchain, graph: PartGraph, folder: Path) -> None:
        self.found, self.graph, self.folder = found, graph, folder
        self.job = graph.write_weights(folder)
        self.file = folder / f"{graph.part}.tflite"

    def convert(self, settings: Mapping[str, Any], config: str = "") -> dict[str, Any]:
        """Convert once; raises Broken for a result without MediaTek's operators where the part has norms."""
        job = {**self.job, "settings": dict(settings), "config": config}
        result = self.found.call(inside.__name__, job, self.folder, CONVERT_S)
        has_own = any(op.op.startswith(OWN) for op in read(self.file).ops)
        if "norm" in self.graph.kinds.values() and not has_own:
            raise Broken(
                f"part '{self.graph.part}' came out of mtk_converter without one {OWN} operator, so each norm runs as "
                "a dozen operators: report it with the converter's version"
            )
        return result

    def quantize(
        self, samples: CalibrationSet, plan_tensors: list[str], globs: list[str], options: Options
    ) -> dict[str, Any]:
        """Convert with calibration; the plan's groups, `float_nodes` and attention with a mask get 16-bit activations.

        With such groups it takes three conversions: in float, for the map from operators to groups; quantized, which
        writes the precision file; and with that file, edited.
        """
        write_samples(samples, self.graph.part, options.samples, self.folder / "samples")
        whole = W8A16 if options.precision == "w8a16" else INT8
        settings = {
            "quantize": True,
            "precision_proportion": {whole: 1.0},
            "use_per_output_channel_quantization": True,
            "prepend_input_quantize_ops": True,
            "append_output_dequantize_ops": True,
        }
        in_16bit = self.graph.check_plan(plan_tensors) | self.graph.match_float_nodes(globs)
        in_16bit |= self.graph.masked_attention.keys()
        if whole == W8A16 or not in_16bit:
            return self.convert(settings)
        self.convert({"quantize": False})
        model = read(self.file)
        operators = match_operators(self.graph.onnx, model)
        first = self.convert(settings, CONFIG)
        if "precision_config_file" in first["skipped"]:
            raise Broken(
                "this mtk_converter has no precision_config_file, so no layer can keep 16 bits: "
                "build with --precision w8a16 or fp, or install a newer one"
            )
        set_16bit_activations(self.folder / CONFIG, model, operators, in_16bit, W8A16)
        return self.convert({**settings, "precision_proportion": None}, CONFIG)


def _entry(
    model: Mapping[str, Any],
    part: str,
    out: Path,
    result: Mapping[str, Any],
    compiled: Mapping[str, Any],
    options: Options,
) -> Entry:
    described = {kind: model["parts"][part][kind] for kind in ("inputs", "outputs")}
    figures = audit(out / f"{part}.tflite")
    tflite_bytes, dla_bytes = figures["size_bytes"], (out / f"{part}.dla").stat().st_size
    plan = json.dumps(compiled["plan"], indent=1)
    (out / f"{part}.plan.json").write_text(plan + "\n", encoding="utf-8")
    return {
        "runner": NAME,
        "file": f"{part}.dla",
        **figures,
        "size_bytes": dla_bytes,
        "tflite": {
            "file": f"{part}.tflite",
            "size_bytes": tflite_bytes,
            "dla_ratio": round(dla_bytes / tflite_bytes, 4),
        },
        "off_npu": compiled["off_npu"],
        "plan": f"{part}.plan.json",
        "command": compiled["command"],
        "bridge": compiled["bridge"],
        "soc": options.soc,
        "toolkit": f"mtk_converter {result['converter']}, ncc-tflite {compiled['version']}",
        "attributes": result["attributes"],
        "skipped": result["skipped"],
        "notes": list(_notes(tflite_bytes, dla_bytes, compiled["off_npu"], result["skipped"])),
        **described,
    }


def _notes(tflite: int, dla: int, off_npu: Mapping[str, int], skipped: list[str]) -> Iterator[str]:
    """Yield the notes of a part for the report."""
    yield f"{tflite / 1e6:.2f} MB of .tflite became {dla / 1e6:.2f} MB of .dla, a ratio of {dla / tflite:.2f}"
    if off_npu:
        yield "not on the NPU: " + ", ".join(f"{count} {op}" for op, count in off_npu.items())
    if skipped:
        yield "settings that this mtk_converter lacks: " + ", ".join(skipped)
