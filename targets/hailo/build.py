"""Build the parts of a binary with the DFC: one step per process; the .har of each step is kept for the next."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nightjar.errors import BadOptions, NightjarError, ToolchainFailed
from nightjar.files import digest, digest_file, read_json, write_atomic
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.nhwc import nhwc_shape, to_nhwc
from nightjar.graphs.onnx_file import load_model, save_model
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.target_build import Entry, Plan, check_request, read_plan, write_layers
from nightjar.progress import tick
from nightjar.quantization.calibration_set import INDEX, CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.hailo.failures import Failure, classify, level_used
from targets.hailo.graph import find_cut, prepare_graph
from targets.hailo.known_windows import shorter_window, window_label, window_note
from targets.hailo.layers import BOUNDARY_KINDS, Layer, int8_mac_share, layers_16bit
from targets.hailo.model_script import allocation_script, optimization_script
from targets.hailo.options import NAME, Options
from targets.hailo.placement import build_parts, read_model, tensors_16bit
from targets.hailo.toolchain import compile as inside

log = logging.getLogger(__name__)


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, work: Path | None
) -> None:
    """Do what `targets.hailo.compile` documents."""
    model = read_model(graphs, options)
    check_request(options.precision, calibration, plan)
    chosen = read_plan(plan, model["parts"]) if plan is not None else None
    found = toolchain(NAME)
    with tempfile.TemporaryDirectory(prefix="nightjar-hailo-") as scratch:

        def npu_part(part: str) -> Entry:
            compiler = PartCompiler(found, options, part, model, graphs, (work or Path(scratch)) / part)
            try:
                if calibration is None or options.precision == "fp":
                    return compiler.float_entry(out)
                return compiler.quantized_entry(calibration, chosen, out)
            except _StepRefused as refused:
                raise refused.error from None

        build_parts(graphs, model, options.npu, out, npu_part, target=NAME, precision=options.precision)


class PartCompiler:
    """Take one part through the steps of the DFC; `folder` is its own and keeps the files of each step."""

    def __init__(
        self, found: Toolchain, options: Options, part: str, model: Mapping[str, Any], graphs: Path, folder: Path
    ) -> None:
        self.found, self.options, self.part, self.model, self.folder = found, options, part, model, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.described = model["parts"][part]
        exported = load_model(graphs / self.described["file"])
        self.graph = Graph(exported)
        self.groups = quantizable_groups(exported)
        self.ends = find_cut(part, self.graph)
        self.onnx = folder / f"{part}.onnx"
        save_model(prepare_graph(exported, options.value_by_one), self.onnx)
        self.sources = [digest_file(self.onnx), found.versions(), options.hw_arch]

    def float_entry(self, out: Path) -> Entry:
        """Translate; return the entry of a part that the emulator runs in float."""
        layers, entry = self._translate(out, "native")
        return entry | self._layer_figures(dict.fromkeys(layers, "float"), out)

    def quantized_entry(self, calibration: Path, plan: Plan | None, out: Path) -> Entry:
        """Translate, optimize and compile; return the part's entry of binary.json."""
        layers, entry = self._translate(out, "quantized")
        tensors = tensors_16bit(self.part, self.groups, self.options, plan)
        in_16bit = layers_16bit(self.groups, layers, tensors, self.options.attention_16bit)
        names = {layer.name for layer in in_16bit}
        in_16bit += [layer for layer in layers if layer.kind == "output_layer" and set(layer.inputs) & names]
        samples = CalibrationSet.open(calibration)
        count = min(self.options.calibration_samples, samples.count(self.part))
        script, optimized = self._optimize(layers, in_16bit, samples, count)
        requested, notes = self.options.optimization_level, [*entry["notes"]]
        used, why = level_used(optimized["log"], requested)
        if used != requested:
            notes.append(f"the DFC optimized at level {used}, not {requested}: {why or 'its log has no reason'}")
            log.warning("%s: %s", self.part, notes[-1])
        hef, share = self._compile([optimized["har_sha256"], script], [None, *self.options.max_utilization])
        (out / f"{self.part}.alls").write_text(script, encoding="utf-8")
        shutil.copyfile(self.folder / "optimized.har", out / f"{self.part}.har")
        shutil.copyfile(hef, out / f"{self.part}.hef")
        return {
            **entry,
            "file": f"{self.part}.hef",
            "script": f"{self.part}.alls",
            "optimization_level": {"asked": requested, "used": used, "why": why},
            "notes": notes,
            "calibration_samples": count,
            "max_utilization": share,
            **self._layer_figures({each: "a16_w16" if each in in_16bit else "a8_w8" for each in layers}, out),
        }

    def _translate(self, out: Path, context: str) -> tuple[list[Layer], Entry]:
        har = self.folder / "translated.har"
        settings = {
            "network": f"nightjar_{self.part}",  # its layers' names begin with it
            "hw_arch": self.options.hw_arch,
            "starts": self.graph.inputs,
            "ends": [end.node for end in self.ends],
            "shapes": {name: list(self.graph.shape(name)) for name in self.graph.inputs},
        }
        result = self._step("translate", settings, {"model": str(self.onnx), "har": str(har)}, har)
        layers = [Layer(**layer) for layer in result["layers"]]
        shutil.copyfile(har, out / f"{self.part}.har")
        return layers, {
            "file": f"{self.part}.har",
            "har": f"{self.part}.har",
            "context": context,
            "dfc": result["version"],
            "hw_arch": self.options.hw_arch,
            "window": window_label(self.model),
            "notes": [window_note(self.model)],
            "inputs": self._inputs(layers),
            "outputs": self._outputs(layers, result["outputs"]),
        }

    def _optimize(
        self, layers: Sequence[Layer], in_16bit: Sequence[Layer], samples: CalibrationSet, count: int
    ) -> tuple[str, dict[str, Any]]:
        """Optimize, where that fails without the removal of dead layers; return the script and the result."""
        har, translated = self.folder / "optimized.har", self.folder / "translated.har"
        made_from = [digest_file(translated), digest_file(samples.folder / INDEX), count]
        data = self._write_calibration(layers, samples, count)
        paths = {"source": str(translated), "har": str(har), "data": data}

        def attempt(keep_dead: bool) -> tuple[str, dict[str, Any]]:
            script = optimization_script(layers, in_16bit, count, self.options, keep_dead=keep_dead)
            return script, self._step("optimize", {"script": script, "made_from": made_from}, paths, har)

        try:
            return attempt(keep_dead=False)
        except _StepRefused as refused:
            if refused.failure.kind != "dead layers":
                raise
            log.info("%s: %s; retrying without the removal of dead layers", self.part, refused)
        return attempt(keep_dead=True)

    def _compile(self, made_from: Sequence[str], shares: Sequence[float | None]) -> tuple[Path, float | None]:
        """Compile the optimized .har with the first share of the chip that fits; return the .hef and that share."""
        hef, har = self.folder / "compiled.hef", self.folder / "compiled.har"
        share, *smaller = shares
        script = allocation_script(share) if share is not None else ""
        paths = {"source": str(self.folder / "optimized.har"), "har": str(har), "hef": str(hef)}
        try:
            self._step("compile", {"script": script, "made_from": made_from}, paths, hef, har)
            return hef, share
        except _StepRefused as refused:
            if refused.failure.kind != "fit" or not smaller:
                raise
            log.info("%s: %s; retrying with %g of the chip", self.part, refused, smaller[0])
        return self._compile(made_from, smaller)

    def _step(self, name: str, settings: Mapping[str, Any], paths: Mapping[str, Any], *outputs: Path) -> dict[str, Any]:
        """Run a step, unless an earlier run did the same job from the same files and its outputs are intact."""
        job = {"kind": name, **settings}
        identity, record_file = digest([self.sources, job]), self.folder / f"{name}.json"
        if record_file.is_file() and all(path.is_file() for path in outputs):
            record = read_json(record_file)
            if record["identity"] == identity and record["files"] == list(map(digest_file, outputs)):
                log.info("%s: %s was done by an earlier run", self.part, name)
                earlier: dict[str, Any] = record["result"]
                return earlier
        record_file.unlink(missing_ok=True)
        result = self._call(name, {**job, **paths})
        files = list(map(digest_file, outputs))
        result["har_sha256"] = files[-1]
        write_atomic(record_file, json.dumps({"identity": identity, "files": files, "result": result}))
        return result

    def _call(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        """Call the DFC; raises _StepRefused for its errors."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        result = self.found.call(
            inside.__name__,
            job,
            folder,
            self.options.hours * 3600,
            on_progress=lambda what, done, total: tick(done, total),
            memory_limit_bytes=int(self.options.memory_gib * 2**30) or int(0.9 * psutil.virtual_memory().total),
        )
        if refused := result.get("refused"):
            failure = classify(refused["kind"], refused["message"])
            log_file = self.found.save_log(name, folder / "log.txt")
            remedy = shorter_window(self.model) if failure.kind == "fit" else failure.remedy
            why = f"({failure.reason}); log in {log_file}: {remedy}"
            error: NightjarError = BadOptions(f"the DFC does not {name} this {self.part} {why}")
            if failure.retryable:
                error = ToolchainFailed(f"the DFC could not {name} the {self.part} {why}")
            raise _StepRefused(failure, error)
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return result | {"log": "\n".join(line for line in text.splitlines() if "level" in line)}

    def _write_calibration(self, layers: Sequence[Layer], samples: CalibrationSet, count: int) -> dict[str, str]:
        """Write a part's samples channels last, an array per input layer; return the files."""
        files: dict[str, str] = {}
        arrays: dict[str, np.memmap[Any, Any]] = {}
        for entry in self._inputs(layers):
            file = self.folder / f"calibration.{entry['name']}.npy"
            shape = (count, *nhwc_shape(entry["shape"])[1:])
            arrays[entry["name"]] = np.lib.format.open_memmap(file, "w+", np.float32, shape)
            files[entry["layer"]] = str(file)
        for number, sample in enumerate(samples.samples(self.part, count)):
            for name, array in arrays.items():
                array[number] = to_nhwc(sample[name])[0]
        return files

    def _inputs(self, layers: Sequence[Layer]) -> list[Entry]:
        """Return the inputs with the network's layer of each; raises ToolchainFailed for another name or shape."""
        described = self.described["inputs"]
        input_layers = [layer for layer in layers if layer.kind == "input_layer"]
        found = []
        for tensor in described:
            layer = next((each for each in input_layers if tensor["name"] in each.nodes), None)
            layer = layer or (input_layers[0] if len(input_layers) == len(described) == 1 else None)
            expected = nhwc_shape(tensor["shape"])[1:]
            shape = tuple(layer.shapes[0][1:]) if layer else None
            if layer is None or shape != expected:
                has = f"reads it as {shape}" if layer else "has no such input"
                raise self._parsed_differently(f"{tensor['name']} is {expected} with its channels last, and it {has}")
            found.append({**tensor, "layer": layer.name})
        return found

    def _outputs(self, layers: Sequence[Layer], outputs: Sequence[str]) -> list[Entry]:
        """Return the outputs with the network's layer and position of each, and the moves left to the host."""
        tensors = {tensor["name"]: tensor for tensor in self.described["outputs"]}
        nodes = {layer.name: layer.nodes for layer in layers}
        ends: list[Entry] = []
        for number, end in enumerate(self.ends):
            # In the order of the end nodes where no layer names its node.
            at = next((i for i, name in enumerate(outputs) if end.node in nodes.get(name, ())), number)
            if at >= len(outputs):
                raise self._parsed_differently(f"its {len(outputs)} outputs do not include {end.name}")
            entry = {**tensors[end.name], "layer": outputs[at], "at": at}
            ends.append(entry | {"from": list(end.shape), "moves": end.moves})
        return ends

    def _parsed_differently(self, how: str) -> ToolchainFailed:
        return ToolchainFailed(f"the DFC parsed the {self.part} differently: {how}; report it with the DFC's version")

    def _layer_figures(self, precisions: Mapping[Layer, str], out: Path) -> Entry:
        """Write the precision of each layer; return the part's figures."""
        rows = [
            {"name": layer.name, "kind": layer.kind, "nodes": layer.nodes, "precision": precision}
            for layer, precision in precisions.items()
        ]
        computing = [row["precision"] for row in rows if row["kind"] not in BOUNDARY_KINDS]
        wide = [layer for layer, precision in precisions.items() if precision != "a8_w8"]
        return {
            "layers": write_layers(out, self.part, rows),
            "int8_mac_share": int8_mac_share(self.groups, list(precisions), wide),
            "nodes_total": len(computing),
            "nodes_int8": computing.count("a8_w8"),
        }


class _StepRefused(Exception):
    """The DFC refused a step; `error` is raised where no other attempt is left."""

    def __init__(self, failure: Failure, error: NightjarError) -> None:
        super().__init__(failure.reason)
        self.failure, self.error = failure, error
