"""Build the parts of a binary with the DFC: one step per process; the .har of each step is kept for the next."""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil

from nightjar.errors import BadOptions, NightjarError, ToolchainFailed
from nightjar.files import digest_file
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.nhwc import nhwc_shape, to_nhwc
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.target_build import Entry, Plan, check_request, read_plan, write_binary, write_layers
from nightjar.progress import tick
from nightjar.quantization.calibration_set import INDEX, CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.hailo.failures import Failure, classify, level_notes, level_used
from targets.hailo.graph import find_cut, prepare_graph
from targets.hailo.known_windows import shorter_window, window_label, window_note
from targets.hailo.layers import BOUNDARY_KINDS, Layer, int8_mac_share, layers_16bit, layers_from
from targets.hailo.model_script import allocation_script, optimization_script
from targets.hailo.options import NAME, Options
from targets.hailo.placement import cpu_part, read_model, tensors_16bit
from targets.hailo.toolchain import compile as inside

log = logging.getLogger(__name__)

NETWORK = "nightjar"  # prefix of every network's name, and so of its layers' names
LOCATIONS = ("data", "source", "har", "hef", "model")  # fields of a job that hold paths


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, work: Path | None
) -> None:
    """Do what `targets.hailo.compile` documents."""
    model = read_model(graphs, options)
    check_request(options.precision, calibration, plan)
    chosen = read_plan(plan, model["parts"]) if plan is not None else None
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightjar-hailo-")))
        for name, part in model["parts"].items():
            if name not in options.npu:
                entries[name] = cpu_part(graphs, name, part, model["recipe"]["decoder"] == "cached", out)
                continue
            compiler = PartCompiler(found, options, name, model, graphs / part["file"], folder / name)
            try:
                if calibration is None or options.precision == "fp":
                    entries[name] = compiler.float_entry(out)
                else:
                    entries[name] = compiler.quantized_entry(calibration, chosen, out)
            except _StepRefused as refused:
                raise refused.error from None
    described = {"precision": options.precision, "host_position_add": model["host_position_add"]}
    write_binary(graphs, model, entries, out, target=NAME, **described)


class PartCompiler:
    """Take one part through the steps of the DFC; `folder` is its own and keeps the files of each step."""

    def __init__(
        self, found: Toolchain, options: Options, part: str, model: Mapping[str, Any], graph: Path, folder: Path
    ) -> None:
        self.found, self.options, self.part, self.model, self.folder = found, options, part, model, folder
        folder.mkdir(parents=True, exist_ok=True)
        exported = onnx.load(graph)
        self.graph = Graph(exported)
        self.groups = quantizable_groups(exported)
        self.cut = find_cut(part, self.graph)
        self.onnx = folder / f"{part}.onnx"
        onnx.save(prepare_graph(exported, options.value_by_one), self.onnx)
        self.sources = [digest_file(self.onnx), found.versions(), options.hw_arch]

    def float_entry(self, out: Path) -> Entry:
        """Translate; return the entry of a part that the emulator runs in float."""
        layers, entry = self._translate(out, "native")
        return {**entry, "int8_mac_share": 0.0, "nodes_int8": 0, "nodes_total": _count_computing(layers)}

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
        requested = self.options.optimization_level
        hef, utilization = self._compile(optimized["har_sha256"], script)
        (out / f"{self.part}.alls").write_text(script, encoding="utf-8")
        shutil.copyfile(self.folder / "optimized.har", out / f"{self.part}.har")
        shutil.copyfile(hef, out / f"{self.part}.hef")
        self._write_layers(layers, in_16bit, out)
        return entry | {
            "file": f"{self.part}.hef",
            "size_bytes": hef.stat().st_size,
            "script": f"{self.part}.alls",
            "optimization_level": {"asked": requested, **optimized["level"]._asdict()},
            "notes": [*entry["notes"], *level_notes(optimized["level"], requested)],
            "calibration_samples": count,
            "max_utilization": utilization,
            "int8_mac_share": int8_mac_share(self.groups, layers, in_16bit),
            "nodes_total": _count_computing(layers),
            "nodes_int8": _count_computing(layers) - _count_computing(in_16bit),
        }

    def _translate(self, out: Path, context: str) -> tuple[list[Layer], Entry]:
        har = self.folder / "translated.har"
        job = {
            "kind": "translate",
            "model": str(self.onnx),
            "network": f"{NETWORK}_{self.part}",
            "hw_arch": self.options.hw_arch,
            "starts": self.cut.starts,
            "ends": [end.node for end in self.cut.ends],
            "shapes": {name: list(self.graph.shape(name)) for name in self.cut.starts},
            "har": str(har),
        }
        result = self._step("translate", job, [self.options.value_by_one], har)
        layers = layers_from(result["layers"])
        shutil.copyfile(har, out / f"{self.part}.har")
        return layers, {
            "runner": NAME,
            "file": f"{self.part}.har",
            "size_bytes": har.stat().st_size,
            "har": f"{self.part}.har",
            "context": context,
            "dfc": result["version"],
            "hw_arch": self.options.hw_arch,
            "window": window_label(self.model),
            "notes": [window_note(self.model)],
            "inputs": self._inputs(layers),
            "outputs": self._outputs(layers, result["outputs"]),
            "layers": self._write_layers(layers, [], out),
        }

    def _optimize(
        self, layers: Sequence[Layer], in_16bit: Sequence[Layer], samples: CalibrationSet, count: int
    ) -> tuple[str, dict[str, Any]]:
        """Optimize, where that fails without the removal of dead layers; return the script and the result."""
        har, translated = self.folder / "optimized.har", self.folder / "translated.har"
        data = self._write_calibration(layers, samples, count)
        sources = [digest_file(translated), digest_file(samples.folder / INDEX), count]

        def attempt(keep_dead: bool) -> tuple[str, dict[str, Any]]:
            script = optimization_script(layers, in_16bit, count, self.options, keep_dead=keep_dead)
            job = {"kind": "optimize", "source": str(translated), "script": script, "har": str(har), "data": data}
            return script, self._step("optimize", job, sources, har)

        try:
            script, result = attempt(keep_dead=False)
        except _StepRefused as refused:
            if refused.failure.kind != "dead layers":
                raise
            log.info("%s: %s; retrying without the removal of dead layers", self.part, refused.failure.reason)
            script, result = attempt(keep_dead=True)
        used = level_used(result["log"], self.options.optimization_level)
        for note in level_notes(used, self.options.optimization_level):
            log.warning("%s: %s", self.part, note)
        return script, {**result, "level": used}

    def _compile(self, har_sha256: str, script: str) -> tuple[Path, float | None]:
        """Compile the optimized .har, with less of the chip where it does not fit; return the .hef and the share."""
        hef, har = self.folder / "compiled.hef", self.folder / "compiled.har"
        job = {"kind": "compile", "source": str(self.folder / "optimized.har"), "har": str(har), "hef": str(hef)}
        utilization: float | None = None
        remaining = list(self.options.max_utilization)
        while True:
            allocation = allocation_script(utilization) if utilization is not None else ""
            try:
                self._step("compile", {**job, "script": allocation}, [har_sha256, script], hef, har)
                return hef, utilization
            except _StepRefused as refused:
                if refused.failure.kind != "fit" or not remaining:
                    raise
                utilization = remaining.pop(0)
                log.info("%s: %s; retrying with %g of the chip", self.part, refused.failure.reason, utilization)

    def _step(self, name: str, job: dict[str, Any], sources: Sequence[Any], *outputs: Path) -> dict[str, Any]:
        """Run a step, unless an earlier run did the same job from the same files and its outputs are intact."""
        content = {key: value for key, value in job.items() if key not in LOCATIONS}
        identity = hashlib.sha256(json.dumps([self.sources, content, list(sources)]).encode()).hexdigest()
        record_file = self.folder / f"{name}.json"
        if record_file.is_file():
            record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
            if record["identity"] == identity and record["files"] == _digests(outputs):
                log.info("%s: %s was done by an earlier run", self.part, name)
                result: dict[str, Any] = record["result"]
                return result
        record_file.unlink(missing_ok=True)
        result = self._call(name, job)
        result["har_sha256"] = digest_file(outputs[-1])
        half = record_file.with_suffix(".part")
        half.write_text(
            json.dumps({"identity": identity, "files": _digests(outputs), "result": result}), encoding="utf-8"
        )
        half.rename(record_file)
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
            saved_log = self.found.save_log(name, folder / "log.txt")
            raise _StepRefused(failure, self._error(name, failure, saved_log))
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return result | {"log": "\n".join(line for line in text.splitlines() if "level" in line)}

    def _error(self, step: str, failure: Failure, log_file: Path) -> NightjarError:
        remedy = shorter_window(self.model) if failure.kind == "fit" else failure.remedy
        if failure.retryable:
            return ToolchainFailed(
                f"the DFC could not {step} the {self.part} ({failure.reason}); log in {log_file}: {remedy}"
            )
        return BadOptions(f"the DFC does not {step} this {self.part} ({failure.reason}); log in {log_file}: {remedy}")

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
        for array in arrays.values():
            array.flush()
        return files

    def _inputs(self, layers: Sequence[Layer]) -> list[Entry]:
        """Return the part's inputs with the network's input layer of each.

        Raises ToolchainFailed where the DFC parsed them with another name or shape.
        """
        described = self.model["parts"][self.part]["inputs"]
        input_layers = [layer for layer in layers if layer.kind == "input_layer"]
        found = []
        for tensor in described:
            layer = next((each for each in input_layers if tensor["name"] in each.nodes), None)
            layer = layer or (input_layers[0] if len(input_layers) == len(described) == 1 else None)
            expected = nhwc_shape(tensor["shape"])[1:]
            if layer is None or layer.shapes[0][1:] != expected:
                has = f"reads it as {layer.shapes[0][1:]}" if layer else "has no such input"
                raise ToolchainFailed(
                    f"the DFC parsed the {self.part} differently: {tensor['name']} is {expected} with its channels "
                    f"last, and it {has}; report it with the DFC's version"
                )
            found.append({**tensor, "layer": layer.name})
        return found

    def _outputs(self, layers: Sequence[Layer], outputs: Sequence[str]) -> list[Entry]:
        """Return the part's outputs with the network's layer and position of each, and the moves left to the host.

        Raises ToolchainFailed where the network has too few outputs.
        """
        tensors = {tensor["name"]: tensor for tensor in self.model["parts"][self.part]["outputs"]}
        nodes = {layer.name: layer.nodes for layer in layers}
        ends: list[Entry] = []
        for number, end in enumerate(self.cut.ends):
            own = [at for at, name in enumerate(outputs) if end.node in nodes.get(name, ())]
            at = own[0] if own else number  # in the order of the end nodes where no layer names its node
            if at >= len(outputs):
                raise ToolchainFailed(
                    f"the DFC parsed the {self.part} differently: its {len(outputs)} outputs do not include "
                    f"{end.name}; report it with the DFC's version"
                )
            entry = {**tensors[end.name], "layer": outputs[at], "at": at}
            ends.append(entry | {"from": list(end.shape), "moves": end.moves})
        return ends

    def _write_layers(self, layers: Sequence[Layer], in_16bit: Sequence[Layer], out: Path) -> str:
        rows = (
            {
                "name": each.name,
                "kind": each.kind,
                "nodes": each.nodes,
                "precision": "a16_w16" if each in in_16bit else "a8_w8",
            }
            for each in layers
        )
        return write_layers(out, self.part, rows)


class _StepRefused(Exception):
    """The DFC refused a step; `error` is raised where no other attempt is left."""

    def __init__(self, failure: Failure, error: NightjarError) -> None:
        super().__init__(failure.reason)
        self.failure, self.error = failure, error


def _count_computing(layers: Sequence[Layer]) -> int:
    return sum(layer.kind not in BOUNDARY_KINDS for layer in layers)


def _digests(files: Sequence[Path]) -> list[str]:
    return [digest_file(path) if path.is_file() else "" for path in files]
