"""Run TorchScript graphs on the host, for `compare` and for tests."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, first_line, require_file


class TorchScriptRunner(PartRunner):
    """Hold one TorchScript module per part."""

    runtime = "torch"

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[Any]:
        with torch.inference_mode():
            tensors = (torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in arrays)
            results = self.handles[part](*tensors)
        return [result.numpy() for result in ((results,) if isinstance(results, torch.Tensor) else results)]


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> TorchScriptRunner:
    """Open `parts` (as in binary.json or model.json) that lie in `folder`; raises RuntimeError with one line."""
    modules = {}
    for name, part in parts.items():
        file = require_file(folder, part["file"], name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript as a whole
                modules[name] = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as exc:
            raise RuntimeError(f"torch cannot load {file} for part {name!r}: {first_line(exc)}") from exc
    return TorchScriptRunner(modules, parts)
