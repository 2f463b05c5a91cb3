"""Build the parts of a binary with MediaTek's SDK: TorchScript and .tflite by its converter, .dla by ncc-tflite."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightjar.errors import Broken
from nightjar.plugins.target_build import Entry, check_request
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.mtk.audit import audit
from targets.mtk.graphs import PartGraph, build_parts, read_model, write_samples
from targets.mtk.ncc import compile_dla
from targets.mtk.options import NAME, Options
from targets.mtk.tflite import Model, read
from targets.mtk.tflite_mapping import match_operators
from targets.mtk.toolchain import compile as inside

INT8, W8A16 = "sym8W_asym8A", "sym8W_sym16A"  # MediaTek's names
OWN = "MTKEXT_"  # prefix of the operators that only MediaTek's runtime has
CONFIG = "precision.json"  # precision_config_file: {"precision_specs": [{*LISTS, "precision_name"}]} in public code
LISTS = ("act_names", "wgt_names", "param_names")


def build(graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None) -> None:
    """Do what `targets.mtk.compile` documents."""
    model = read_model(graphs)
    check_request(options.precision, calibration, plan)
    found = toolchain(NAME)

    def build_part(part: str, plan_tensors: list[str] | None, globs: list[str]) -> Entry:
        with tempfile.TemporaryDirectory(prefix="nightjar-mtk-") as name:
            converter = PartConverter(found, PartGraph(graphs, model, part), Path(name))
            if plan_tensors is None or calibration is None:
                result = converter.convert({"quantize": False})
            else:
                in_16bit = converter.graph.check_plan(plan_tensors) | converter.graph.match_float_nodes(globs)
                result = converter.quantize(CalibrationSet.open(calibration), in_16bit, options)
            tflite = Path(shutil.move(converter.file, out / f"{part}.tflite"))
        compiled = compile_dla(found, tflite, tflite.with_suffix(".dla"), options.soc, options.bridge)
        plan_text = json.dumps(compiled["plan"], indent=1)
        (out / f"{part}.plan.json").write_text(plan_text + "\n", encoding="utf-8")
        figures = audit(tflite)
        before, after = figures["size_bytes"], tflite.with_suffix(".dla").stat().st_size
        sizes = f"{before / 1e6:.2f} MB of .tflite became {after / 1e6:.2f} MB of .dla, a ratio of {after / before:.2f}"
        notes = {
            "not on the NPU": ", ".join(f"{count} {op}" for op, count in compiled["off_npu"].items()),
            "settings that this mtk_converter lacks": ", ".join(result["skipped"]),
        }
        return {
            "file": f"{part}.dla",
            **figures,
            "size_bytes": after,
            "tflite": {"file": tflite.name, "size_bytes": before, "dla_ratio": round(after / before, 4)},
            "off_npu": compiled["off_npu"],
            "plan": f"{part}.plan.json",
            "command": compiled["command"],
            "bridge": compiled["bridge"],
            "soc": options.soc,
            "toolkit": f"mtk_converter {result['converter']}, ncc-tflite {compiled['version']}",
            "attributes": result["attributes"],
            "skipped": result["skipped"],
            "notes": [sizes, *(f"{what}: {names}" for what, names in notes.items() if names)],
        }

    build_parts(graphs, model, options, plan, out, NAME, build_part)


class PartConverter:
    """Trace and convert one part with mtk_converter, in a folder of its own."""

    def __init__(self, found: Toolchain, graph: PartGraph, folder: Path) -> None:
        self.found, self.graph, self.folder = found, graph, folder
        self.job = graph.write_weights(folder)
        self.file = folder / f"{graph.part}.tflite"

    def convert(self, settings: Mapping[str, Any], config: str = "") -> dict[str, Any]:
        """Convert once; raises Broken for a result without MediaTek's operators where the part has norms."""
        job = {**self.job, "settings": dict(settings), "config": config}
        result = self.found.call(inside.__name__, job, self.folder, timeout_s=3600)
        has_own = any(op.op.startswith(OWN) for op in read(self.file).ops)
        if "norm" in self.graph.kinds.values() and not has_own:
            raise Broken(
                f"part '{self.graph.part}' came out of mtk_converter without one {OWN} operator, so each norm runs as "
                "a dozen operators: report it with the converter's version"
            )
        return result

    def quantize(self, samples: CalibrationSet, in_16bit: set[str], options: Options) -> dict[str, Any]:
        """Convert with calibration; the groups `in_16bit` and attention with a mask get 16-bit activations.

        With such groups, first in float to map operators to groups, then to get a precision file, then with it edited.
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
        in_16bit = in_16bit | self.graph.masked_attention.keys()
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


def set_16bit_activations(
    file: Path, model: Model, operators: Mapping[str, Sequence[int]], groups: set[str], name: str
) -> None:
    """Move the tensors of groups to the precision `name` of a precision_config_file, in place.

    model: the part converted in float, whose tensors have the names of the file; operators: of each group, by number.
    Raises Broken for a file of another form, and for a group without a tensor in the file.
    """
    advice = "build with --precision int8 or w8a16, and report it with the converter's version"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        specs = [{**spec, **{kind: list(spec[kind]) for kind in LISTS}} for spec in content["precision_specs"]]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Broken(f"mtk_converter wrote a precision file of another form ({exc!r}): {advice}") from exc
    wanted: dict[str, set[str]] = {}
    for group in sorted(groups):
        ops = [model.ops[number] for number in operators[group]]
        constants = [t for op in ops for t in op.inputs if t >= 0 and model.tensors[t].data is not None]
        outputs = [t for op in ops for t in op.outputs]
        wanted[group] = {model.tensors[tensor].name for tensor in (*outputs, *constants)}
    listed = {each for spec in specs for kind in LISTS for each in spec[kind]}
    if unknown := [group for group, names in wanted.items() if names and not names & listed]:
        raise Broken(
            f"mtk_converter's precision file names no tensor of {', '.join(unknown[:3])}: its names differ from "
            f"its .tflite's; {advice}"
        )
    names = set().union(*wanted.values())
    moved = {kind: list[str]() for kind in LISTS}
    for spec in (spec for spec in specs if spec["precision_name"] != name):
        for kind in LISTS:
            moved[kind] += [each for each in spec[kind] if each in names]
            spec[kind] = [each for each in spec[kind] if each not in names]
    content["precision_specs"] = [*specs, {**moved, "precision_name": name}]
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
