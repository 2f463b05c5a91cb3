"""Build the parts of a binary with the toolkit: float16 in one step, int8 from collected quantization parameters."""

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
from nightjar.errors import BadOptions
from nightjar.graphs.onnx_file import graph_files, load_model, save_model
from nightjar.graphs.onnx_graph import Graph, rename_tensors
from nightjar.plugins.target_build import (
    Entry,
    check_request,
    float_node_globs,
    match_float_nodes,
    part_progress,
    read_model,
    read_plan,
    require_products,
    write_binary,
    write_layers,
)
from nightjar.process import run_parallel
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.rknn.audit import audit, read_table
from targets.rknn.layer_mapping import Layer, layer_names, read_names, write_float16_layers
from targets.rknn.options import NAME, Options
from targets.rknn.ranges import write_ranges
from targets.rknn.toolchain import compile as inside

log = logging.getLogger(__name__)

BUILD_S = 3600.0
QUANTIZE_S = 6 * 3600.0
OWN_RANGES = "clips"  # the value of quantized_algorithm for which Nightjar collects the ranges
CUSTOM_CHARACTERS = 1024
DESCRIPTIVE = ("comment", "version", "model_author", "url", "onnx.infer")  # metadata that no program reads
ZOO_NAMES = {"mel": "x", "hidden": "out"}  # rknn_model_zoo's, for users of its `window`; runners go by order


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, quantized: Path | None
) -> None:
    """Do what `targets.rknn.compile` documents."""
    model = read_model(graphs, NAME)
    files = {name: part["file"] for name, part in model["parts"].items()}
    check_request(options.precision, calibration, plan, quantized)
    chosen = read_plan(plan, files) if plan is not None else None
    stream = "chunk" in model and options.float_rules
    # int8 in a stream's small parts would cover only their boundary, which is float16.
    whole = chosen.whole_parts if chosen else [part for part in files if stream and part != "encoder"]
    globs = float_node_globs(options.float_nodes, files)
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nightjar-rknn-") as scratch:
        if options.precision == "fp":
            quantized = None
        elif quantized is not None:
            _check_quantization_options(quantized, options)
        elif calibration is not None:
            quantized = Path(scratch) / "quantized"
            quantization(graphs, calibration, options, quantized)
        finished = count(1)

        def build_part(part: str) -> Entry:
            if quantized is None or part in whole:
                entry = build_float(found, graphs / files[part], part, options, out)
            else:
                names = read_names(quantized / f"{part}.quantization.cfg")
                float16 = chosen.float_tensors[part] if chosen else names["masked_attention"] * options.float_rules
                if options.float_rules:
                    float16 = [*float16, *names["boundary"], *names["counting"] * stream]
                layer_of = {**names["tensors"], **names["nodes"]}
                float16 = [*float16, *match_float_nodes(part, globs[part], layer_of, names["nodes"])]
                entry = build_hybrid(found, quantized, graphs / files[part], part, float16, out)
                if chosen is None:  # a plan may keep all of a small part float
                    require_products(part, "int8", entry["int8_mac_share"])
            tick(next(finished), len(files))
            return {**entry, "soc": options.soc}

        built = run_parallel([partial(build_part, part) for part in files], _parallel_parts(graphs, files))
    write_binary(graphs, model, dict(zip(files, built, strict=True)), out, target=NAME, precision=options.precision)


def _parallel_parts(graphs: Path, files: Mapping[str, str]) -> int:
    """Return how many parts to build at once: one per core, within the free memory."""
    largest = max(sum(path.stat().st_size for path in graph_files(graphs / file)) for file in files.values())
    fitting = memory_free_bytes() // (2**30 + 15 * largest)  # about what the toolkit takes
    return max(1, min(len(os.sched_getaffinity(0)), len(files), fitting))


def build_float(found: Toolchain, graph: Path, part: str, options: Options, out: Path) -> Entry:
    """Compile one part in float16 into `out`; return its entry of binary.json."""
    with _call_folder(part, graph) as folder:
        job = {"kind": "float", "name": part, "config": _config(options) | custom_string(graph.parent, part)}
        return _run_build(found, job, folder, graph, out)


def quantization(graphs: Path, calibration: Path, options: Options, out: Path) -> None:
    """Collect every part's quantization parameters over its calibration samples, which takes minutes per part.

    Writes per part NAME.model, NAME.data, NAME.quantization.cfg (the toolkit's) and NAME.names.json into `out`. They
    depend on the graphs, the calibration set and the options for ranges; quantization.json has those options.
    """
    samples = CalibrationSet.open(calibration)
    files = {name: part["file"] for name, part in read_model(graphs, NAME)["parts"].items()}
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    for number, (part, file) in enumerate(files.items()):
        report = part_progress(number, len(files), "Quantizating")  # the toolkit's own spelling
        with _call_folder(part, graphs / file) as folder:
            graph = Graph(load_model(graphs / file))
            dataset = samples.write_dataset(part, folder / "dataset")
            own_ranges = options.quantized_algorithm == OWN_RANGES
            if own_ranges:
                lines = most_informative(dataset)
            else:
                lines = evenly_spaced(dataset, samples_in_memory(graph.model, options))
            (folder / "dataset.txt").write_text(lines, encoding="utf-8")
            job = {"kind": "quantize", "name": part, "config": _config(options) | custom_string(graphs, part)}
            result = found.call(inside.__name__, job, folder, QUANTIZE_S, on_progress=report)
            layers = [Layer(**entry) for entry in result["layers"]]
            names = layer_names(graph, layers)
            if own_ranges:
                inputs = (spec.name for spec in samples.inputs(part))
                first = dict(zip(inputs, map(np.load, lines.split()), strict=True))
                rest = samples.samples(part, options.samples)
                write_ranges(folder / f"{part}.quantization.cfg", graph.model, first, rest, names["tensors"])
            for suffix in inside.QUANTIZATION_FILES:
                shutil.move(folder / f"{part}.{suffix}", out / f"{part}.{suffix}")
        (out / f"{part}.names.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    (out / "quantization.json").write_text(json.dumps(_quantization_options(options)) + "\n", encoding="utf-8")


def build_hybrid(found: Toolchain, quantized: Path, graph: Path, part: str, float16: Sequence[str], out: Path) -> Entry:
    """Compile one part from its quantization parameters into `out`: the named layers in float16, the rest in int8.

    float16: tensors of the float ONNX graph, or of the toolkit's own. Returns the part's entry of binary.json.
    """
    with _call_folder(part, graph) as folder:
        for suffix in ("model", "data"):
            (folder / f"{part}.{suffix}").symlink_to((quantized / f"{part}.{suffix}").resolve())
        write_float16_layers(quantized / f"{part}.quantization.cfg", float16, folder / f"{part}.quantization.cfg")
        return _run_build(found, {"kind": "hybrid", "name": part}, folder, graph, out)


def samples_in_memory(model: onnx.ModelProto, options: Options) -> int:
    """Return how many samples fit `memory_gib`: the toolkit holds every activation of all of them at once."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    held = 4 * sum(math.prod(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values)
    fitting = max(1, min(options.samples, int(options.memory_gib * 2**30 // held)))
    if fitting < options.samples:
        log.info("%d samples of %.0f MiB instead of %d: memory_gib", fitting, held / 2**20, options.samples)
    return fitting


def most_informative(dataset: Path) -> str:
    """Return the line of a dataset.txt with the fewest all-zero inputs, of the first 32.

    ranges.py identifies tensors by their extremes in one sample. The first step of a stream or of a prefix has all-zero
    states, which identify nothing.
    """
    lines = dataset.read_text(encoding="utf-8").splitlines(keepends=True)[:32]
    return min(lines, key=lambda line: sum(not np.load(path).any() for path in line.split()))


def evenly_spaced(dataset: Path, samples: int) -> str:
    """Return at most so many lines of a dataset.txt, spread evenly: a decoder's samples are in order of their clips."""
    lines = dataset.read_text(encoding="utf-8").splitlines(keepends=True)
    step = max(1.0, len(lines) / samples)
    return "".join(lines[int(number * step)] for number in range(min(samples, len(lines))))


def _run_build(found: Toolchain, job: Mapping[str, Any], folder: Path, graph: Path, out: Path) -> Entry:
    """Do a job of a build, move its files to `out` and return the part's entry of binary.json, with its audit."""
    part = job["name"]
    result = found.call(inside.__name__, job, folder, BUILD_S)
    for path in (folder / f"{part}.rknn", folder / f"{part}.sim.json", *graph_files(folder / f"{part}.sim.onnx")):
        shutil.move(path, out / path.name)
    rows = read_table((folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
    figures, layers = audit(Graph(load_model(graph)), [Layer(**entry) for entry in result["layers"]], rows)
    described = read_model(graph.parent, NAME)["parts"][part]
    return {
        "file": f"{part}.rknn",
        **figures,
        "layers": write_layers(out, part, layers),
        "simulator": {"graph": f"{part}.sim.onnx", "tables": f"{part}.sim.json"},
        "toolkit": result["toolkit"],
        **{kind: described[kind] for kind in ("inputs", "outputs")},  # the runtime has no names
    }


@contextmanager
def _call_folder(part: str, graph: Path) -> Iterator[Path]:
    """Give a call its own folder with the graph as PART.onnx: the toolkit writes paths into its files."""
    with tempfile.TemporaryDirectory(prefix="nightjar-rknn-") as name:
        place = Path(name) / f"{part}.onnx"
        if part == "encoder" and read_model(graph.parent, NAME)["recipe"]["decoder"] == "window":
            save_model(rename_tensors(load_model(graph), ZOO_NAMES), place)
        else:
            for path in graph_files(graph):
                (place.parent / path.name).symlink_to(path.resolve())
        yield Path(name)


def _check_quantization_options(quantized: Path, options: Options) -> None:
    """Raise BadOptions where quantization parameters were collected with other options, such as another SoC."""
    had: dict[str, Any] = json.loads((quantized / "quantization.json").read_text(encoding="utf-8"))
    for name, wanted in _quantization_options(options).items():
        if had.get(name) != wanted:
            raise BadOptions(
                f"the quantization parameters in {quantized} were collected with {name} {had.get(name)}, not {wanted}: "
                "collect them again with `targets.rknn.build.quantization`"
            )


def _quantization_options(options: Options) -> dict[str, Any]:
    return {**_config(options), "quantized_algorithm": options.quantized_algorithm}


def _config(options: Options) -> dict[str, Any]:
    """Return the arguments of the toolkit's `config`; where Nightjar collects the ranges it sees one sample."""
    algorithm = options.quantized_algorithm
    return {
        "target_platform": options.soc,
        "quantized_algorithm": "normal" if algorithm == OWN_RANGES else algorithm,
        "quantized_method": options.quantized_method,
        "optimization_level": options.optimization_level,
    }


def custom_string(graphs: Path, part: str) -> dict[str, str]:
    """Return the argument of `config` that puts a stream's metadata into its encoder, `key=value;key=value`.

    sherpa-onnx's RKNN runtime reads it, context_size too (csrc/rknn/online-zipformer-…-rknn.cc). It reads 1023
    characters; raises BadOptions for more.
    """
    model = read_model(graphs, NAME)
    if "metadata" not in model or part != "encoder":
        return {}
    text = ";".join(f"{key}={value}" for key, value in model["metadata"].items() if key not in DESCRIPTIVE)
    if len(text) >= CUSTOM_CHARACTERS:
        raise BadOptions(
            f"the encoder's metadata has {len(text)} characters, and a .rknn file holds {CUSTOM_CHARACTERS - 1}: "
            "shorten the metadata of the exported ONNX"
        )
    return {"custom_string": text}
