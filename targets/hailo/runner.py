"""Run compiled parts on the NPU with HailoRT: numpy and hailo_platform only.

The contract, as hailo-ai/hailort documents it (branch hailo8, pyhailort.py): one VDevice holds the chip for all parts;
an InferModel gives each stream's shape without the batch, channels last; format types are set before configure();
run(bindings, timeout) takes a list and milliseconds; what goes wrong is a HailoRTException. Buffers must be contiguous,
of the stream's size and of the format's type: the default is the chip's own, mostly uint8.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hailo_platform import (  # type: ignore[import-not-found]  # on boards only
    FormatType,
    HailoSchedulingAlgorithm,
    VDevice,
)
from numpy.typing import NDArray

from nightjar.graphs.nhwc import from_nhwc, to_nhwc

Tensors = dict[str, NDArray[Any]]
Tensor = Mapping[str, Any]  # {"name", "shape", "layer"}, of an output {"from", "moves"} besides

TIMEOUT_MS = 10_000  # of one run; a whole encoder takes a tenth of a second


class HailoRunner:
    """Hold the chip, and per part a configured model with its buffers."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], timeout_ms: int) -> None:
        self.parts, self.timeout_ms = dict(parts), timeout_ms
        self.models: dict[str, Any] = {}
        self.bindings: dict[str, Any] = {}
        self.buffers: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of the input streams
        self._open = contextlib.ExitStack()
        settings = VDevice.create_params()
        settings.scheduling_algorithm = HailoSchedulingAlgorithm.ROUND_ROBIN  # two parts share the chip
        self.device = self._open.enter_context(VDevice(settings))

    def open(self, part: str, hef: Path) -> None:
        """Load a part's .hef and give it float32 streams; RuntimeError where it is not the part that was compiled."""
        entry, model = self.parts[part], self.device.create_infer_model(str(hef))
        for kind, names, stream in (
            ("inputs", list(model.input_names), model.input),
            ("outputs", list(model.output_names), model.output),
        ):
            wanted = {tensor["layer"]: tensor for tensor in entry[kind]}
            if set(names) != set(wanted):
                raise RuntimeError(f"{hef} has {kind} {', '.join(names)} where {part} has {', '.join(wanted)}")
            for name in names:
                stream(name).set_format_type(FormatType.FLOAT32)
                size = int(np.prod(wanted[name].get("from", wanted[name]["shape"])))
                if int(np.prod(stream(name).shape)) != size:
                    raise RuntimeError(f"{hef} has {name} as {tuple(stream(name).shape)}, not with {size} elements")
        configured = self._open.enter_context(model.configure())
        self.buffers[part] = {
            tensor["layer"]: np.empty(tuple(model.output(tensor["layer"]).shape), np.float32)
            for tensor in entry["outputs"]
        }
        bindings = configured.create_bindings()
        for layer, buffer in self.buffers[part].items():
            bindings.output(layer).set_buffer(buffer)
        self.shapes[part] = {name: tuple(model.input(name).shape) for name in model.input_names}
        self.models[part], self.bindings[part] = configured, bindings

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.models:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.models))}")
        entry, given = self.parts[part], {**inputs, **constant}
        if given.keys() != {tensor["name"] for tensor in entry["inputs"]}:
            raise RuntimeError(f"{part} takes {', '.join(t['name'] for t in entry['inputs'])}, not {', '.join(given)}")
        laid = []  # HailoRT reads them in place, until the run has ended
        for tensor in entry["inputs"]:
            array = given[tensor["name"]]
            if list(array.shape) != list(tensor["shape"]):
                raise RuntimeError(f"{part} takes {tensor['name']} as {tuple(tensor['shape'])}, not {array.shape}")
            laid.append(to_nhwc(array).reshape(self.shapes[part][tensor["layer"]]))
            self.bindings[part].input(tensor["layer"]).set_buffer(laid[-1])
        try:
            with _printing_to_stderr():
                self.models[part].run([self.bindings[part]], self.timeout_ms)
        except Exception as exc:  # HailoRTException, or the raw one of its C++ binding
            raise RuntimeError(f"the NPU gave no result for {part}: {said(exc)}") from exc
        # Copies: the next run writes into the same buffers.
        return {
            tensor["name"]: from_nhwc(self.buffers[part][tensor["layer"]], tensor["from"], tensor["moves"]).copy()
            for tensor in entry["outputs"]
        }

    def close(self) -> None:
        """Give the chip back."""
        with _printing_to_stderr():
            self._open.close()
        self.models.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> HailoRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    options: `timeout_ms` of one run (10 s by default). Raises RuntimeError with one line.
    """
    files = {}
    for name, part in parts.items():
        files[name] = Path(folder) / part["file"]
        if part.get("context") == "native":
            raise RuntimeError(
                f"{name} is in float, and the NPU computes with integers: build it with --precision int8"
            )
        if not files[name].is_file():
            raise RuntimeError(f"no file {files[name]} for part {name!r}")
    try:
        with _printing_to_stderr():
            runner = HailoRunner(parts, int((options or {}).get("timeout_ms", TIMEOUT_MS)))
    except Exception as exc:  # see run
        raise RuntimeError(f"no Hailo device can be opened: {said(exc)}") from exc
    for name, file in files.items():
        try:
            with _printing_to_stderr():
                runner.open(name, file)
        except RuntimeError:
            runner.close()
            raise
        except Exception as exc:  # see run
            runner.close()
            raise RuntimeError(f"the NPU runtime cannot load {file}: {said(exc)}") from exc
    return runner


def said(exc: Exception) -> str:
    """Say in one line what HailoRT raised, and for what people meet most what helps."""
    kind = type(exc).__name__
    lines = str(exc).strip().splitlines()
    line = f"{kind}: {lines[0][:300]}" if lines else kind
    for words, help_ in HELP.items():
        if words in line:
            return f"{line}; {help_}"
    return line


HELP = {
    "HEFNotCompatibleWithDevice": "the .hef is of another chip: compile with --target-options hw_arch=hailo8l",
    "HEF_NOT_COMPATIBLE": "the .hef is of another chip: compile with --target-options hw_arch=hailo8l",
    "InvalidHEF": "the .hef is damaged, or of a DFC that this HailoRT is too old for",
    "Timeout": "the chip is busy, hot or hung: `hailortcli fw-control identify` shows whether it answers",
    "DEVICE_IN_USE": "another process holds the chip: end it, or share it with HailoRT's multi-process service",
    "PHYSICAL_DEVICES": "another process holds the chip, or there is none: `hailortcli scan`",
    "DriverOperationFailed": "HailoRT and its driver are of different versions: `dmesg | grep hailo`",
    "DriverVersion": "HailoRT and its driver are of different versions: install the driver of this HailoRT",
}


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Keep what the runtime prints, in C, off stdout: a session's result lines go there."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
