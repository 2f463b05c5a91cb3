"""Run compiled parts in the DFC's emulator: float as parsed, or the numbers of the quantized network."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.device.part_io import Parts, Tensors, class_and_line, ordered_inputs, require_file, stdout_to_stderr
from nightjar.graphs.nhwc import from_nhwc, to_nhwc
from targets.hailo.toolchain.sdk import open_runner as open_client

CONTEXTS = {"native": "SDK_NATIVE", "quantized": "SDK_QUANTIZED"}


class EmulatorRunner:
    """Hold one open inference context per part."""

    def __init__(self, parts: Parts) -> None:
        self.parts = dict(parts)
        self.clients: dict[str, Any] = {}
        self.contexts: dict[str, Any] = {}
        self._open = contextlib.ExitStack()

    def open(self, part: str, har: Path) -> None:
        """Open a part's .har in the context that its entry names; a model loads once for all its runs."""
        from hailo_sdk_client import InferenceContext  # type: ignore[import-not-found]

        self.clients[part] = open_client(har=str(har))
        context = getattr(InferenceContext, CONTEXTS[self.parts[part]["context"]])
        self.contexts[part] = self._open.enter_context(self.clients[part].infer_context(context))

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        wanted = {name: self.parts[name]["inputs"] for name in self.clients}
        arrays = ordered_inputs(part, wanted, {**inputs, **constant})
        data = {tensor["layer"]: to_nhwc(array) for tensor, array in zip(wanted[part], arrays, strict=True)}
        try:
            with stdout_to_stderr():
                found = self.clients[part].infer(self.contexts[part], data)
        except Exception as exc:  # any class of the DFC or of TensorFlow
            raise RuntimeError(f"the DFC's emulator cannot run {part}: {class_and_line(exc)}") from exc
        results, outputs = list(found) if isinstance(found, (list, tuple)) else [found], self.parts[part]["outputs"]
        if len(results) != len(outputs):
            raise RuntimeError(f"the DFC's emulator gave {len(results)} outputs for {part}, not {len(outputs)}")
        try:
            return {
                tensor["name"]: np.asarray(from_nhwc(results[tensor["at"]], tensor["from"], tensor["moves"]))
                for tensor in outputs
            }
        except ValueError as exc:
            raise RuntimeError(f"the DFC's emulator gave {part} in another shape: {exc}") from exc

    def close(self) -> None:
        """Leave the contexts and drop the models."""
        with stdout_to_stderr():
            self._open.close()
        self.clients.clear()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> EmulatorRunner:
    """Open `parts` (name to {"har", "context", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    runner = EmulatorRunner(parts)
    for name, part in parts.items():
        har = require_file(folder, part["har"], name)
        try:
            with stdout_to_stderr():
                runner.open(name, har)
        except ImportError:
            raise
        except Exception as exc:  # see run
            raise RuntimeError(f"the DFC's emulator cannot load {har}: {class_and_line(exc)}") from exc
    return runner
