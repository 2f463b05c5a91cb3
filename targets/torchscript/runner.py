"""Run TorchScript graphs on the host, for `compare` and for tests."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nightjar.device.part_io import Tensors, first_line, require_part


class TorchScriptRunner:
    """One TorchScript module per part."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], names: Mapping[str, Mapping[str, list[str]]]) -> None:
        self.modules, self.names = dict(modules), names

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        require_part(part, self.modules)
        given, names = {**inputs, **constant}, self.names[part]
        if given.keys() != set(names["inputs"]):
            raise RuntimeError(f"{part} takes {', '.join(names['inputs'])}, not {', '.join(given)}")
        with torch.inference_mode():
            arrays = (np.require(given[name], requirements=["C", "W"]) for name in names["inputs"])
            results = self.modules[part](*map(torch.from_numpy, arrays))
        if isinstance(results, torch.Tensor):
            results = (results,)
        return dict(zip(names["outputs"], (result.numpy() for result in results), strict=True))

    def close(self) -> None:
        """Drop the modules and their memory."""
        self.modules.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> TorchScriptRunner:
    """Open `parts` (name to {"file", ...}, as in binary.json or model.json) that lie in `folder`.

    options: none so far. The files have the names of their inputs and outputs. Raises RuntimeError with one line.
    """
    modules, names = {}, {}
    for name, part in parts.items():
        file, extra = Path(folder) / part["file"], {"names.json": ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript as a whole
                modules[name] = torch.jit.load(str(file), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as exc:
            raise RuntimeError(f"torch cannot load {file} for part {name!r}: {first_line(exc)}") from exc
        if not extra["names.json"]:
            raise RuntimeError(f"{file} does not name its inputs and outputs: export it again")
        names[name] = json.loads(extra["names.json"])
    return TorchScriptRunner(modules, names)
