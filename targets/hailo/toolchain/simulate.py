"""Run compiled parts in the DFC's emulator: float as parsed, or the numbers of the quantized network."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, class_and_line, errors_as, require_file, stdout_to_stderr
from nightjar.graphs.nhwc import from_nhwc, to_nhwc
from targets.hailo.toolchain.sdk import open_runner as open_client

CONTEXTS = {"native": "SDK_NATIVE", "quantized": "SDK_QUANTIZED"}


class EmulatorRunner(PartRunner):
    """Hold a client of the DFC with an open inference context per part."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        from hailo_sdk_client import InferenceContext  # type: ignore[import-not-found]

        super().__init__({}, parts)
        self._contexts = contextlib.ExitStack()
        for name, part in parts.items():
            har = require_file(folder, part["har"], name)
            with stdout_to_stderr(), errors_as(f"the DFC's emulator cannot load {har}", class_and_line):
                client = open_client(har=str(har))
                context = client.infer_context(getattr(InferenceContext, CONTEXTS[part["context"]]))
                self.handles[name] = client, self._contexts.enter_context(context)  # loads once for all runs

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        data = {t["layer"]: to_nhwc(array) for t, array in zip(self.inputs[part], arrays, strict=True)}
        client, context = self.handles[part]
        with stdout_to_stderr(), errors_as(f"the DFC's emulator cannot run {part}", class_and_line):
            found = client.infer(context, data)
        results, outputs = list(found) if isinstance(found, (list, tuple)) else [found], self.outputs[part]
        if len(results) != len(outputs):
            raise RuntimeError(f"the DFC's emulator gave {len(results)} outputs for {part}, not {len(outputs)}")
        with errors_as(f"the DFC's emulator gave {part} in another shape"):
            return [from_nhwc(results[tensor["at"]], tensor["from"], tensor["moves"]) for tensor in outputs]

    def close(self) -> None:
        """Leave the contexts and drop the models."""
        with stdout_to_stderr():
            self._contexts.close()
        super().close()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> EmulatorRunner:
    """Open `parts` (name to {"har", "context", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    return EmulatorRunner(folder, parts)
