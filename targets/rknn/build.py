"""Make the parts of a binary by calling the toolkit: float16 at once, int8 by way of quantization parameters."""

import fnmatch
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nightjar.device.health import memory_free_bytes
from nightjar.errors import BadInput, BadOptions
from nightjar.process import run_parallel
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.rknn.audit import audit, read_table, require_int8
from targets.rknn.layer_mapping import layers_from, precision_file, read_names, tensor_names, write_names
from targets.rknn.options import NAME, Options
from targets.rknn.ranges import write_ranges
from targets.rknn.toolchain import compile as inside

log = logging.getLogger(__name__)

BUILD_S = 3600.0
QUANTIZE_S = 6 * 3600.0
OURS = "clips"  # the quantized_algorithm that is not the toolkit's
STEP1 = ("model", "data", "quantization.cfg")
MADE = ("rknn", "sim.onnx", "sim.json")
LOOKED_AT = 32  # lines of a dataset.txt
CUSTOM_CHARACTERS = 1024
PROSE = ("comment", "version", "model_author", "url", "onnx.infer")  # what metadata says to people
ZOO = {"mel": "x", "hidden": "out"}  # rknn_model_zoo's names, for those who take its `window`; runners go by order

Entry = dict[str, Any]


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.rknn.compile` says."""
    model = read_model(graphs)
    files = {name: part["file"] for name, part in model["parts"].items()}
    kept = _planned(plan, files) if plan is not None else {}
    stream = "chunk" in model and options.float_rules
    if plan is not None:
        whole = json.loads(plan.read_text(encoding="utf-8")).get("whole", ())
    else:  # of a stream's small parts int8 would be the boundary alone, and that is float16
        whole = [part for part in files if stream and part != "encoder"]
    if options.precision == "auto" and plan is None:
        raise BadOptions(
            "--precision auto needs the plan of a precision search; build with --precision int8 or fp instead"
        )
    _patterns(options.float_nodes, files)
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nightjar-rknn-") as scratch:
        if options.precision != "fp" and quantized is None:
            if calibration is None:
                raise BadOptions("int8 needs calibration data: pass a calibration set, or build with --precision fp")
            quantized = Path(scratch) / "quantized"
            quantization(graphs, calibration, options, quantized)
        if options.precision == "fp":
            quantized = None
        if quantized is not None:
            _require_same(quantized, options)

        ended = count(1)

        def make(part: str) -> Entry:
            entry = made_of(part)
            tick(next(ended), len(files))
            return entry

        def made_of(part: str) -> Entry:
            if quantized is None or part in whole:
                return build_float(found, graphs / files[part], part, options, out)
            names = read_names(quantized / f"{part}.quantization.cfg")
            keep = [*kept[part]] if plan is not None else [*names["masked_attention"]] * options.float_rules
            if stream:
                keep += [*names["boundary"], *names["counting"]]
            keep += matching(part, _patterns(options.float_nodes, files)[part], names)
            entry = hybrid(found, quantized, graphs / files[part], part, keep, out)
            if plan is None:  # a search may keep all of a small part float
                require_int8(part, entry)
            return entry

        made = run_parallel([partial(make, part) for part in files], _at_once(graphs, files))
        entries = dict(zip(files, made, strict=True))
    for part, entry in entries.items():
        described = {kind: model["parts"][part][kind] for kind in ("inputs", "outputs")}  # the runtime knows no names
        entry |= {"soc": options.soc, **described}
    for path in sorted(graphs.glob("*embedding*")):
        shutil.copyfile(path, out / path.name)
    for part in files:
        model["parts"][part]["file"] = f"{part}.rknn"
    (out / "model.json").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    description = {"target": NAME, "precision": options.precision, "parts": entries}
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _at_once(graphs: Path, files: Mapping[str, str]) -> int:
    """Say how many parts may be built together: one per core, as far as the memory goes.

    The toolkit takes about a gigabyte and fifteen times the size of the graph.
    """
    largest = max((graphs / file).stat().st_size for file in files.values())
    fitting = memory_free_bytes() // (2**30 + 15 * largest)
    return max(1, min(len(os.sched_getaffinity(0)), len(files), fitting))


def read_model(graphs: Path) -> dict[str, Any]:
    """Read model.json; raises BadOptions for graphs that are not ONNX."""
    model: dict[str, Any] = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    if model["recipe"]["graph_format"] != "onnx":
        raise BadOptions("target rknn compiles ONNX graphs, these are TorchScript: export with graph_format onnx")
    return model


def build_float(found: Toolchain, graph: Path, part: str, options: Options, out: Path) -> Entry:
    """Compile one part in float16 into `out`; return its entry of binary.json."""
    with _working(part, graph) as folder:
        job = {"kind": "float", "name": part, "config": _config(options) | told_of(read_model(graph.parent), part)}
        result = found.call(inside.__name__, job, folder, BUILD_S)
        return _finish(graph, part, folder, result, out)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Collect every part's quantization parameters over its calibration samples: the expensive step, minutes a part.

    Writes per part NAME.model, NAME.data, NAME.quantization.cfg (the toolkit's) and NAME.names.json into `out`; they
    depend on the graphs, the calibration set and the options for ranges, and on nothing else; quantization.json says on
    which options.
    """
    samples, files = CalibrationSet.open(calibration), {n: p["file"] for n, p in read_model(graphs)["parts"].items()}
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    for number, (part, file) in enumerate(files.items()):

        def show(what: str, done: int, total: int, before: int = number) -> None:
            if what == "Quantizating":
                tick(100 * before + 100 * done // total, 100 * len(files))

        with _working(part, graphs / file) as folder:
            model = onnx.shape_inference.infer_shapes(onnx.load(graphs / file), data_prop=True)
            ours = options.quantized_algorithm == OURS
            dataset = samples.write_dataset(part, folder / "dataset")
            lines = telling(dataset) if ours else thinned(dataset, fitting_samples(model, options))
            (folder / "dataset.txt").write_text(lines, encoding="utf-8")
            job = {"kind": "quantize", "name": part, "config": _config(options) | told_of(read_model(graphs), part)}
            result = found.call(inside.__name__, job, folder, QUANTIZE_S, on_progress=show)
            if ours:
                called = tensor_names(model, layers_from(result["layers"]))
                names = [spec.name for spec in samples.inputs(part)]
                seen = dict(zip(names, map(np.load, lines.split()), strict=True))
                taken = samples.samples(part, options.samples)
                write_ranges(folder / f"{part}.quantization.cfg", onnx.load(graphs / file), seen, taken, called)
            for suffix in STEP1:
                shutil.move(folder / f"{part}.{suffix}", out / f"{part}.{suffix}")
        write_names(model, layers_from(result["layers"]), out, part)
    (out / "quantization.json").write_text(json.dumps(_collected_with(options)) + "\n", encoding="utf-8")


def hybrid(found: Toolchain, quantized: Path, graph: Path, part: str, keep: Sequence[str], out: Path) -> Entry:
    """Compile one part from its quantization parameters into `out`, the layers of `keep` in float16, the rest in int8.

    keep: tensors of the float ONNX graph, or of the toolkit's own. Returns the part's entry of binary.json.
    """
    with _working(part, graph) as folder:
        for suffix in ("model", "data"):
            (folder / f"{part}.{suffix}").symlink_to((quantized / f"{part}.{suffix}").resolve())
        precision_file(quantized / f"{part}.quantization.cfg", keep, folder / f"{part}.quantization.cfg")
        result = found.call(inside.__name__, {"kind": "hybrid", "name": part}, folder, BUILD_S)
        return _finish(graph, part, folder, result, out)


def matching(part: str, patterns: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    """Find the layers that globs over the ONNX graph's nodes and tensors name; BadOptions for one that fits none."""
    layer_of = {**names["tensors"], **names["nodes"]}
    keep = []
    for pattern in patterns:
        fitting = fnmatch.filter(layer_of, pattern)
        if not fitting:
            raise BadOptions(
                f"float_nodes '{part}:{pattern}' fits no layer that could be int8; "
                f"{part} has {', '.join(names['nodes'])}"
            )
        keep += [layer_of[name] for name in fitting]
    return keep


def fitting_samples(model: onnx.ModelProto, options: Options) -> int:
    """Say how many samples `memory_gib` allows: the toolkit holds every activation of all of them at once."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    held = 4 * sum(math.prod(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values)
    fitting = max(1, min(options.samples, int(options.memory_gib * 2**30 // max(held, 1))))
    if fitting < options.samples:
        log.info("%d samples of %.0f MiB instead of %d: memory_gib", fitting, held / 2**20, options.samples)
    return fitting


def telling(dataset: Path) -> str:
    """Return the line of a dataset.txt that tells most: of the first ones, the first with the fewest inputs of zeros.

    By the ends of one sample's tensors ours are told from each other (ranges.py), and a stream's or a prefix's first
    step, whose states are all zeros, tells nothing.
    """
    lines = dataset.read_text(encoding="utf-8").splitlines(keepends=True)[:LOOKED_AT]
    return min(lines, key=lambda line: sum(not np.load(path).any() for path in line.split()))


def thinned(dataset: Path, samples: int) -> str:
    """Return at most so many lines of a dataset.txt, spread evenly: a decoder's samples lie in order of their clips."""
    lines = dataset.read_text(encoding="utf-8").splitlines(keepends=True)
    step = max(1.0, len(lines) / samples)
    return "".join(lines[int(number * step)] for number in range(min(samples, len(lines))))


def _finish(graph: Path, part: str, folder: Path, result: Mapping[str, Any], out: Path) -> Entry:
    """Move what a build made to `out`, audit it and describe it."""
    for suffix in MADE:
        shutil.move(folder / f"{part}.{suffix}", out / f"{part}.{suffix}")
    rows = read_table((folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
    model = onnx.shape_inference.infer_shapes(onnx.load(graph), data_prop=True)
    figures, entries = audit(model, layers_from(result["layers"]), rows)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (out / f"{part}.layers.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return {
        "runner": NAME,
        "file": f"{part}.rknn",
        "size_bytes": (out / f"{part}.rknn").stat().st_size,
        **figures,
        "layers": f"{part}.layers.json",
        "simulator": {"graph": f"{part}.sim.onnx", "tables": f"{part}.sim.json"},
        "toolkit": result["toolkit"],
    }


@contextmanager
def _working(part: str, graph: Path) -> Iterator[Path]:
    """Give a call a folder of its own, with the graph under its part's name: paths get into what the toolkit writes."""
    with tempfile.TemporaryDirectory(prefix="nightjar-rknn-") as name:
        place = Path(name) / f"{part}.onnx"
        if part == "encoder" and read_model(graph.parent)["recipe"]["decoder"] == "window":
            onnx.save(renamed(onnx.load(graph), ZOO), place)
        else:
            place.symlink_to(graph.resolve())
        yield Path(name)


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Give inputs and outputs of a graph other names, in place."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


def _require_same(quantized: Path, options: Options) -> None:
    """Raise BadOptions where quantization parameters were collected with other options: the SoC is in them."""
    had: dict[str, Any] = json.loads((quantized / "quantization.json").read_text(encoding="utf-8"))
    for name, wanted in _collected_with(options).items():
        if had.get(name) != wanted:
            raise BadOptions(
                f"the quantization parameters in {quantized} were collected with {name} {had.get(name)}, not {wanted}: "
                "collect them again with `targets.rknn.build.quantization`"
            )


def _collected_with(options: Options) -> dict[str, Any]:
    return {**_config(options), "quantized_algorithm": options.quantized_algorithm}


def _config(options: Options) -> dict[str, Any]:
    """Return the arguments of the toolkit's `config`; what it collects for our ranges, it takes from one sample."""
    return {
        "target_platform": options.soc,
        "quantized_algorithm": "normal" if options.quantized_algorithm == OURS else options.quantized_algorithm,
        "quantized_method": options.quantized_method,
        "optimization_level": options.optimization_level,
    }


def told_of(model: Mapping[str, Any], part: str) -> dict[str, str]:
    """Return what `config` takes so that the file says it of itself: a stream's metadata, in its encoder.

    sherpa-onnx's RKNN runtime reads it, `key=value;key=value`, context_size too (csrc/rknn/online-zipformer-…-rknn.cc);
    1023 characters are read. Raises BadOptions for more.
    """
    if "metadata" not in model or part != "encoder":
        return {}
    said = ";".join(f"{key}={value}" for key, value in model["metadata"].items() if key not in PROSE)
    if len(said) >= CUSTOM_CHARACTERS:
        raise BadOptions(
            f"the encoder's metadata has {len(said)} characters, and a .rknn file holds {CUSTOM_CHARACTERS - 1}: "
            "shorten what its ONNX says of itself"
        )
    return {"custom_string": said}


def _patterns(float_nodes: Sequence[str], parts: Mapping[str, str]) -> dict[str, list[str]]:
    patterns: dict[str, list[str]] = {part: [] for part in parts}
    for entry in float_nodes:
        part, _, pattern = entry.partition(":")
        if part not in patterns or not pattern:
            raise BadOptions(f"float_nodes '{entry}' is not PART:GLOB with a PART of {', '.join(parts)}")
        patterns[part].append(pattern)
    return patterns


def _planned(plan: Path, parts: Mapping[str, str]) -> dict[str, list[str]]:
    """Read plan.json: part to the tensors kept float16; a part it does not name keeps none."""
    try:
        planned: dict[str, list[str]] = json.loads(plan.read_text(encoding="utf-8"))["float"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BadInput(
            f"{plan} is no plan ({exc}): it is {{'float': {{part: [tensor, …]}}}}; "
            "run the same command with --refresh rank"
        ) from exc
    if unknown := sorted(planned.keys() - parts.keys()):
        raise BadOptions(
            f"the plan names part {unknown[0]!r}; these graphs have {', '.join(parts)}: "
            "run the same command with --refresh rank"
        )
    return {part: list(planned.get(part, ())) for part in parts}
