"""Run compiled parts in the DFC's emulator: float as parsed, or the numbers of the quantized network."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.graphs.nhwc import from_nhwc, to_nhwc
from targets.hailo.toolchain.sdk import open_runner as open_client
from targets.hailo.toolchain.sdk import printing_to_stderr

Tensors = dict[str, NDArray[Any]]
CONTEXTS = {"native": "SDK_NATIVE", "quantized": "SDK_QUANTIZED"}


class EmulatorRunner:
    """Hold one open inference context per part."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
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
        if part not in self.clients:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.clients))}")
        entry, given = self.parts[part], {**inputs, **constant}
        if given.keys() != {tensor["name"] for tensor in entry["inputs"]}:
            raise RuntimeError(f"{part} takes {', '.join(t['name'] for t in entry['inputs'])}, not {', '.join(given)}")
        for tensor in entry["inputs"]:
            if list(given[tensor["name"]].shape) != list(tensor["shape"]):
                shape = given[tensor["name"]].shape
                raise RuntimeError(f"{part} takes {tensor['name']} as {tuple(tensor['shape'])}, not {shape}")
        data = {tensor["layer"]: to_nhwc(given[tensor["name"]]) for tensor in entry["inputs"]}
        try:
            with printing_to_stderr():
                found = self.clients[part].infer(self.contexts[part], data)
        except Exception as exc:  # of any class of the DFC's or TensorFlow's
            raise RuntimeError(f"the DFC's emulator cannot run {part}: {_first_line(exc)}") from exc
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        if len(results) != len(entry["outputs"]):
            raise RuntimeError(
                f"the DFC's emulator gave {len(results)} outputs for {part}, not {len(entry['outputs'])}"
            )
        try:
            return {
                tensor["name"]: np.asarray(from_nhwc(results[tensor["at"]], tensor["from"], tensor["moves"]))
                for tensor in entry["outputs"]
            }
        except ValueError as exc:
            raise RuntimeError(f"the DFC's emulator gave {part} in another shape: {exc}") from exc

    def close(self) -> None:
        """Leave the contexts and drop the models."""
        with printing_to_stderr():
            self._open.close()
        self.clients.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: "Mapping[str, Any] | None" = None
) -> EmulatorRunner:
    """Open `parts` (name to {"har", "context", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    runner = EmulatorRunner(parts)
    for name, part in parts.items():
        har = Path(folder) / part["har"]
        if not har.is_file():
            raise RuntimeError(f"no file {har} for part {name!r}")
        try:
            with printing_to_stderr():
                runner.open(name, har)
        except ImportError:
            raise
        except Exception as exc:  # see run
            raise RuntimeError(f"the DFC's emulator cannot load {har}: {_first_line(exc)}") from exc
    return runner


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0][:300]}" if lines else type(exc).__name__
