"""Run compiled parts on the NPU with HailoRT: numpy and hailo_platform only.

The contract, as hailo-ai/hailort documents it (branch hailo8, pyhailort.py): one VDevice holds the chip for all parts;
an InferModel gives each stream's shape without the batch, channels last; format types are set before configure();
run(bindings, timeout) takes a list and milliseconds; errors are HailoRTExceptions. Buffers must be contiguous, of the
size of the stream and of the type of the format, which is the chip's own by default, mostly uint8.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hailo_platform import (  # type: ignore[import-not-found]  # on boards only
    FormatType,
    HailoSchedulingAlgorithm,
    VDevice,
)
from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, class_and_line, errors_as, require_file, stdout_to_stderr
from nightjar.graphs.nhwc import from_nhwc, to_nhwc

TIMEOUT_MS = 10_000  # of one run; a whole encoder takes a tenth of a second


class HailoRunner(PartRunner):
    """Hold the chip, and per part a configured model with its bindings and output buffers."""

    def __init__(self, parts: Parts, timeout_ms: int) -> None:
        super().__init__({}, parts)
        self.timeout_ms = timeout_ms
        self._open = contextlib.ExitStack()
        settings = VDevice.create_params()
        settings.scheduling_algorithm = HailoSchedulingAlgorithm.ROUND_ROBIN  # two parts share the chip
        self.device = self._open.enter_context(VDevice(settings))

    def open(self, part: str, hef: Path) -> None:
        """Load a part's .hef with float32 streams; raises RuntimeError for the .hef of another part."""
        model = self.device.create_infer_model(str(hef))
        for kind, tensors, names, stream in (
            ("inputs", self.inputs[part], list(model.input_names), model.input),
            ("outputs", self.outputs[part], list(model.output_names), model.output),
        ):
            wanted = {tensor["layer"]: tensor for tensor in tensors}
            if set(names) != set(wanted):
                raise RuntimeError(f"{hef} has {kind} {', '.join(names)} where {part} has {', '.join(wanted)}")
            for name in names:
                stream(name).set_format_type(FormatType.FLOAT32)
                size = int(np.prod(wanted[name].get("from", wanted[name]["shape"])))
                if int(np.prod(stream(name).shape)) != size:
                    raise RuntimeError(f"{hef} has {name} as {tuple(stream(name).shape)}, not with {size} elements")
        configured = self._open.enter_context(model.configure())
        bindings = configured.create_bindings()
        buffers = [np.empty(tuple(model.output(tensor["layer"]).shape), np.float32) for tensor in self.outputs[part]]
        for tensor, buffer in zip(self.outputs[part], buffers, strict=True):
            bindings.output(tensor["layer"]).set_buffer(buffer)
        shapes = [tuple(model.input(tensor["layer"]).shape) for tensor in self.inputs[part]]
        self.handles[part] = configured, bindings, shapes, buffers

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        configured, bindings, shapes, outputs = self.handles[part]
        inputs = [to_nhwc(array).reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]
        for tensor, buffer in zip(self.inputs[part], inputs, strict=True):  # read in place until the run has ended
            bindings.input(tensor["layer"]).set_buffer(buffer)
        with stdout_to_stderr(), errors_as(f"the NPU gave no result for {part}", describe_error):
            configured.run([bindings], self.timeout_ms)
        pairs = zip(self.outputs[part], outputs, strict=True)
        # Copies: the next run writes into the same buffers.
        return [from_nhwc(buffer, tensor["from"], tensor["moves"]).copy() for tensor, buffer in pairs]

    def close(self) -> None:
        """Release the chip."""
        with stdout_to_stderr():
            self._open.close()
        super().close()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> HailoRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    options: `timeout_ms` of one run (10 s by default). Raises RuntimeError with one line.
    """
    files = {}
    for name, part in parts.items():
        if part.get("context") == "native":
            raise RuntimeError(f"{name} is in float, and the NPU computes with integers: build with --precision int8")
        files[name] = require_file(folder, part["file"], name)
    with stdout_to_stderr(), errors_as("no Hailo device can be opened", describe_error):
        runner = HailoRunner(parts, int((options or {}).get("timeout_ms", TIMEOUT_MS)))
    with contextlib.ExitStack() as undo:
        undo.callback(runner.close)
        for name, file in files.items():
            # The messages of `open` itself are RuntimeErrors; HailoRT raises HailoRTException, or its C++ binding's.
            with stdout_to_stderr(), errors_as(f"the NPU runtime cannot load {file}", describe_error, RuntimeError):
                runner.open(name, file)
        undo.pop_all()
    return runner


def describe_error(exc: Exception) -> str:
    """Return an exception of HailoRT in one line, with the remedy of the common ones."""
    line = class_and_line(exc)
    remedy = next((remedy for words, remedy in REMEDIES.items() if words in line), "")
    return f"{line}; {remedy}" if remedy else line


REMEDIES = {
    "HEFNotCompatibleWithDevice": "the .hef is of another chip: compile with --target-options hw_arch=hailo8l",
    "HEF_NOT_COMPATIBLE": "the .hef is of another chip: compile with --target-options hw_arch=hailo8l",
    "InvalidHEF": "the .hef is damaged, or of a DFC that this HailoRT is too old for",
    "Timeout": "the chip is busy, hot or hung: `hailortcli fw-control identify` shows whether it answers",
    "DEVICE_IN_USE": "another process holds the chip: end it, or share it with HailoRT's multi-process service",
    "PHYSICAL_DEVICES": "another process holds the chip, or there is none: `hailortcli scan`",
    "DriverOperationFailed": "HailoRT and its driver are of different versions: `dmesg | grep hailo`",
    "DriverVersion": "HailoRT and its driver are of different versions: install the driver of this HailoRT",
}
