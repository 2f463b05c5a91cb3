"""Make the parts of a binary by calling the DFC, one step a process, each step's .har kept for the next."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nightjar.errors import BadOptions, NightjarError, ToolchainFailed
from nightjar.files import digest_file
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.nhwc import nhwc_shape, to_nhwc
from nightjar.graphs.onnx_graph import Graph
from nightjar.progress import tick
from nightjar.quantization.calibration_set import INDEX, CalibrationSet
from nightjar.toolchains.environment import Toolchain, toolchain
from targets.hailo.failures import Failure, classify, level_notes, level_used
from targets.hailo.graph import Cut, cut, prepared
from targets.hailo.known_windows import shorter_window, window_label, window_note
from targets.hailo.layers import ENDS, Layer, eight_bit_share, layers_from, wide_layers
from targets.hailo.model_script import allocation_script, optimization_script
from targets.hailo.options import NAME, Options
from targets.hailo.placement import Entry, cpu_part, read_model, wide_tensors, write_binary
from targets.hailo.toolchain import compile as inside

log = logging.getLogger(__name__)

WIDE = "a16_w16"
NETWORK = "nightjar"  # begins every network's name, which begins those of its layers


def build(
    graphs: Path, calibration: Path | None, options: Options, out: Path, plan: Path | None, work: Path | None
) -> None:
    """Do what `targets.hailo.compile` says."""
    model = read_model(graphs, options)
    if options.precision == "auto" and plan is None:
        raise BadOptions(
            "--precision auto needs the plan of a precision search; build with --precision int8 or fp instead"
        )
    if options.precision != "fp" and calibration is None:
        raise BadOptions("int8 needs calibration data: pass a calibration set, or build with --precision fp")
    found = toolchain(NAME)
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    with _working(work) as folder:
        for name, part in model["parts"].items():
            if name not in options.npu:
                entries[name] = cpu_part(graphs, name, part, model["recipe"]["decoder"] == "cached", out)
                continue
            steps = Steps(found, options, name, model, graphs / part["file"], folder / name)
            if calibration is None or options.precision == "fp":
                entries[name] = steps.float_entry(out)
            else:
                entries[name] = steps.quantized_entry(calibration, plan, out)
    write_binary(graphs, model, entries, NAME, options.precision, out)


class Steps:
    """The way of one part through the DFC; `folder` is its own and keeps what each step made."""

    def __init__(
        self, found: Toolchain, options: Options, part: str, model: Mapping[str, Any], graph: Path, folder: Path
    ) -> None:
        self.found, self.options, self.part, self.model, self.folder = found, options, part, model, folder
        folder.mkdir(parents=True, exist_ok=True)
        exported = onnx.load(graph)
        self.graph = Graph(exported)
        self.groups = quantizable_groups(exported)
        self.cut: Cut = cut(part, self.graph)
        self.onnx = folder / f"{part}.onnx"
        onnx.save(prepared(exported, options.value_by_one), self.onnx)
        self.made_from = [digest_file(self.onnx), found.versions(), options.hw_arch]

    def float_entry(self, out: Path) -> Entry:
        """Translate; return the entry of a part that the emulator runs in float."""
        layers, entry = self._translated(out, "native")
        return {**entry, "int8_mac_share": 0.0, "nodes_int8": 0, "nodes_total": _computing(layers)}

    def quantized_entry(self, calibration: Path, plan: Path | None, out: Path) -> Entry:
        """Translate, optimize and compile; return the part's entry of binary.json."""
        layers, entry = self._translated(out, "quantized")
        named = wide_tensors(self.part, self.groups, self.options, plan)
        wide = wide_layers(self.groups, layers, named, self.options.attention_16bit)
        wide += [
            layer for layer in layers if layer.kind == "output_layer" and set(layer.inputs) & {w.name for w in wide}
        ]
        samples = CalibrationSet.open(calibration)
        count = min(self.options.calibration_samples, samples.count(self.part))
        script, optimized = self._optimized(layers, wide, samples, count)
        asked = self.options.optimization_level
        hef, utilization = self._compiled(optimized["har_sha256"], script)
        (out / f"{self.part}.alls").write_text(script, encoding="utf-8")
        shutil.copyfile(self.folder / "optimized.har", out / f"{self.part}.har")
        shutil.copyfile(hef, out / f"{self.part}.hef")
        narrow = _computing(layers) - sum(layer.kind not in ENDS for layer in wide)
        self._write_layers(layers, wide, out)
        return entry | {
            "file": f"{self.part}.hef",
            "size_bytes": hef.stat().st_size,
            "script": f"{self.part}.alls",
            "optimization_level": {"asked": asked, **optimized["level"]._asdict()},
            "notes": [*entry["notes"], *level_notes(optimized["level"], asked)],
            "calibration_samples": count,
            "max_utilization": utilization,
            "int8_mac_share": eight_bit_share(self.groups, layers, wide),
            "nodes_total": _computing(layers),
            "nodes_int8": narrow,
        }

    def _translated(self, out: Path, context: str) -> tuple[list[Layer], Entry]:
        har = self.folder / "translated.har"
        shapes = {name: list(self.graph.shape(name)) for name in self.cut.starts}
        ends = [ending.node for ending in self.cut.endings]
        job = {
            "kind": "translate",
            "model": str(self.onnx),
            "network": f"{NETWORK}_{self.part}",
            "hw_arch": self.options.hw_arch,
            "starts": self.cut.starts,
            "ends": ends,
            "shapes": shapes,
            "har": str(har),
        }
        try:
            result = self._step("translate", job, [self.options.value_by_one], har)
        except _Refused as refused:
            raise refused.error from None
        layers = layers_from(result["layers"])
        shutil.copyfile(har, out / f"{self.part}.har")
        entry = {
            "runner": NAME,
            "file": f"{self.part}.har",
            "size_bytes": har.stat().st_size,
            "har": f"{self.part}.har",
            "context": context,
            "dfc": result["version"],
            "hw_arch": self.options.hw_arch,
            "window": window_label(self.model),
            "notes": [window_note(self.model)],
            **self._ends(layers, result["outputs"]),
        }
        self._write_layers(layers, [], out)
        return layers, entry | {"layers": f"{self.part}.layers.json"}

    def _optimized(
        self, layers: Sequence[Layer], wide: Sequence[Layer], samples: CalibrationSet, count: int
    ) -> tuple[str, dict[str, Any]]:
        """Optimize; once more without the removal of dead layers where that fails. Return the script and the result."""
        har, translated = self.folder / "optimized.har", self.folder / "translated.har"
        data = self._calibration(layers, samples, count)
        made_from = [digest_file(translated), digest_file(samples.folder / INDEX), count]

        def attempt(keep_dead: bool) -> tuple[str, dict[str, Any]]:
            script = optimization_script(layers, wide, count, self.options, keep_dead=keep_dead)
            job = {"kind": "optimize", "source": str(translated), "script": script, "har": str(har), "data": data}
            return script, self._step("optimize", job, made_from, har)

        try:
            try:
                script, result = attempt(keep_dead=False)
            except _Refused as refused:
                if refused.failure.sort != "dead layers":
                    raise
                log.info("%s: %s; again without the removal of dead layers", self.part, refused.failure.reason)
                script, result = attempt(keep_dead=True)
        except _Refused as refused:
            raise refused.error from None
        used = level_used(result["log"], self.options.optimization_level)
        for note in level_notes(used, self.options.optimization_level):
            log.warning("%s: %s", self.part, note)
        return script, {**result, "level": used}

    def _compiled(self, har_sha256: str, script: str) -> tuple[Path, float | None]:
        """Compile the optimized .har, with less of the chip where it does not fit; return the .hef and the share."""
        hef, har = self.folder / "compiled.hef", self.folder / "compiled.har"
        job = {"kind": "compile", "source": str(self.folder / "optimized.har"), "har": str(har), "hef": str(hef)}
        utilization: float | None = None
        left = list(self.options.max_utilization)
        while True:
            allocation = allocation_script(utilization) if utilization is not None else ""
            try:
                self._step("compile", {**job, "script": allocation}, [har_sha256, script], hef, har)
                return hef, utilization
            except _Refused as refused:
                if refused.failure.sort != "fit" or not left:
                    raise refused.error from None
                utilization = left.pop(0)
                log.info("%s: %s; again with %g of the chip", self.part, refused.failure.reason, utilization)

    def _step(self, name: str, job: dict[str, Any], made_from: Sequence[Any], *makes: Path) -> dict[str, Any]:
        """Take a step, unless an earlier run has: the same job from the same files, and what it made still there."""
        asked = {key: value for key, value in job.items() if key not in ("data", "source", "har", "hef", "model")}
        identity = hashlib.sha256(json.dumps([self.made_from, asked, list(made_from)]).encode()).hexdigest()
        record = self.folder / f"{name}.json"
        if record.is_file():
            said: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            if said["identity"] == identity and said["files"] == _digests(makes):
                log.info("%s: %s was done by an earlier run", self.part, name)
                result: dict[str, Any] = said["result"]
                return result
        record.unlink(missing_ok=True)
        result = self._call(name, job)
        result["har_sha256"] = digest_file(makes[-1])
        said = {"identity": identity, "files": _digests(makes), "result": result}
        half = record.with_suffix(".part")
        half.write_text(json.dumps(said), encoding="utf-8")
        half.rename(record)
        return result

    def _call(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        """Call the DFC; raises _Refused for what it says no to."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        result = self.found.call(
            inside.__name__,
            job,
            place,
            self.options.hours * 3600,
            on_progress=lambda what, done, total: tick(done, total),
            memory_limit_bytes=_memory_bytes(self.options),
        )
        said = (place / "log.txt").read_text(encoding="utf-8", errors="replace")
        if refused := result.get("refused"):
            failure = classify(refused["kind"], refused["message"])
            kept = self.found.save_log(name, place / "log.txt")
            raise _Refused(failure, self._error(name, failure, kept))
        return result | {"log": "\n".join(line for line in said.splitlines() if "level" in line)}

    def _error(self, step: str, failure: Failure, kept: Path) -> NightjarError:
        remedy = shorter_window(self.model) if failure.sort == "fit" else failure.remedy
        if failure.again:
            return ToolchainFailed(
                f"the DFC could not {step} the {self.part} ({failure.reason}); log in {kept}: {remedy}"
            )
        return BadOptions(f"the DFC does not {step} this {self.part} ({failure.reason}); log in {kept}: {remedy}")

    def _calibration(self, layers: Sequence[Layer], samples: CalibrationSet, count: int) -> dict[str, str]:
        """Write a part's samples channels last, an array per input layer; return the files."""
        inputs = self._ends(layers, None)["inputs"]
        files = {entry["layer"]: self.folder / f"calibration.{entry['name']}.npy" for entry in inputs}
        arrays = {
            entry["name"]: np.lib.format.open_memmap(
                files[entry["layer"]], "w+", np.float32, (count, *nhwc_shape(entry["shape"])[1:])
            )
            for entry in inputs
        }
        for number, sample in enumerate(samples.samples(self.part, count)):
            for name, array in arrays.items():
                array[number] = to_nhwc(sample[name])[0]
        for array in arrays.values():
            array.flush()
        return {layer: str(path) for layer, path in files.items()}

    def _ends(self, layers: Sequence[Layer], outputs: Sequence[str] | None) -> dict[str, list[Entry]]:
        """Say which tensor of the part is which layer's of the network, and what the host does to what comes out.

        Raises ToolchainFailed where the DFC has read the graph in another way than its own names and shapes say.
        """
        described = self.model["parts"][self.part]
        by_name = {layer.name: layer for layer in layers}
        into = [layer for layer in layers if layer.kind == "input_layer"]
        found = []
        for tensor in described["inputs"]:
            layer = next((each for each in into if tensor["name"] in each.nodes), None)
            layer = layer or (into[0] if len(into) == len(described["inputs"]) == 1 else None)
            expected = nhwc_shape(tensor["shape"])[1:]
            if layer is None or layer.shapes[0][1:] != expected:
                has = f"reads it as {layer.shapes[0][1:]}" if layer else "has no such input"
                raise ToolchainFailed(
                    f"the DFC took the {self.part} in another way: {tensor['name']} is {expected} with its channels "
                    f"last, and it {has}; report it with the DFC's version"
                )
            found.append({**tensor, "layer": layer.name})
        if outputs is None:
            return {"inputs": found}
        tensors = {tensor["name"]: tensor for tensor in described["outputs"]}
        ends: list[Entry] = []
        for number, ending in enumerate(self.cut.endings):
            own = [at for at, name in enumerate(outputs) if name in by_name and ending.node in by_name[name].nodes]
            at = own[0] if own else number  # in the order of the end nodes, where it does not say
            if at >= len(outputs):
                raise ToolchainFailed(
                    f"the DFC took the {self.part} in another way: it puts out {len(outputs)} tensors, of which none "
                    f"is {ending.name}; report it with the DFC's version"
                )
            entry = {**tensors[ending.name], "layer": outputs[at], "at": at}
            ends.append(entry | {"from": list(ending.shape), "moves": ending.moves})
        return {"inputs": found, "outputs": ends}

    def _write_layers(self, layers: Sequence[Layer], wide: Sequence[Layer], out: Path) -> None:
        rows = [
            {
                "name": each.name,
                "kind": each.kind,
                "nodes": each.nodes,
                "precision": "a16_w16" if each in wide else "a8_w8",
            }
            for each in layers
        ]
        lines = ",\n".join(json.dumps(row) for row in rows)
        (out / f"{self.part}.layers.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


class _Refused(Exception):
    """The DFC said no: what it was, and what is raised where nothing else can be tried."""

    def __init__(self, failure: Failure, error: NightjarError) -> None:
        super().__init__(failure.reason)
        self.failure, self.error = failure, error


def _computing(layers: Sequence[Layer]) -> int:
    return sum(layer.kind not in ENDS for layer in layers)


def _digests(files: Sequence[Path]) -> list[str]:
    return [digest_file(path) if path.is_file() else "" for path in files]


def _memory_bytes(options: Options) -> int:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(options.memory_gib * 2**30) or int(0.9 * whole)


@contextmanager
def _working(work: Path | None) -> Iterator[Path]:
    """Give the folder that stays after a failure, or one that does not."""
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="nightjar-hailo-") as scratch:
        yield Path(scratch)
