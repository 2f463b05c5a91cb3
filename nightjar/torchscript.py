"""Run TorchScript graphs on the host, for `compare` and for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


class TorchScriptRunner:
    """Hold one TorchScript module per part; the order of inputs and outputs is model.json's."""

    def __init__(self, modules: Mapping[str, torch.jit.ScriptModule], parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.modules = dict(modules)
        self.inputs = {part: [i["name"] for i in parts[part]["inputs"]] for part in modules}
        self.outputs = {part: [o["name"] for o in parts[part]["outputs"]] for part in modules}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.modules:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.modules))}")
        given = {**inputs, **constant}
        if given.keys() != set(self.inputs[part]):
            raise RuntimeError(f"{part} takes {', '.join(self.inputs[part])}, not {', '.join(given)}")
        with torch.inference_mode():
            tensors = [torch.from_numpy(np.asarray(given[name])) for name in self.inputs[part]]
            results = self.modules[part](*tensors)
        if isinstance(results, torch.Tensor):
            results = (results,)
        return dict(zip(self.outputs[part], (r.numpy() for r in results), strict=True))

    def close(self) -> None:
        """Drop the modules and their memory."""
        self.modules.clear()


def open_runner(folder: Path, model: Mapping[str, Any]) -> TorchScriptRunner:
    """Open every part that `model` (model.json) lists, from `folder`; raises RuntimeError."""
    modules = {}
    for name, part in model["parts"].items():
        file = Path(folder) / part["file"]
        try:
            modules[name] = torch.jit.load(str(file), map_location="cpu").eval()
        except (RuntimeError, ValueError) as exc:
            reason = str(exc).strip().splitlines()[0]
            raise RuntimeError(f"torch cannot load {file} for {name}: {reason}") from exc
    return TorchScriptRunner(modules, model["parts"])
