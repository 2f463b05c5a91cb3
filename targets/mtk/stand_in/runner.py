"""Run .tflite parts with LiteRT on a CPU: numpy and ai_edge_litert only. This is no NPU's runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]  # in the stand-in's environment
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
Tensor = Mapping[str, Any]  # {"name", "shape", "dtype"}


class LiteRtRunner:
    """Hold one interpreter per part."""

    def __init__(self, interpreters: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.interpreters = dict(interpreters)
        self.inputs: dict[str, list[Tensor]] = {name: parts[name]["inputs"] for name in interpreters}
        self.outputs: dict[str, list[Tensor]] = {name: parts[name]["outputs"] for name in interpreters}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.interpreters:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.interpreters))}")
        given, wanted, interpreter = {**inputs, **constant}, self.inputs[part], self.interpreters[part]
        if given.keys() != {entry["name"] for entry in wanted}:
            raise RuntimeError(f"{part} takes {', '.join(e['name'] for e in wanted)}, not {', '.join(given)}")
        for entry, detail in zip(wanted, _ordered(interpreter.get_input_details()), strict=True):
            array = given[entry["name"]]
            if list(array.shape) != list(entry["shape"]):
                raise RuntimeError(f"{part} takes {entry['name']} as {tuple(entry['shape'])}, not {array.shape}")
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"], copy=False))  # int64 became int32
        try:
            interpreter.invoke()
        except RuntimeError as exc:
            raise RuntimeError(f"LiteRT cannot run {part}: {str(exc).strip().splitlines()[0][:300]}") from exc
        details = _ordered(interpreter.get_output_details())
        return {
            entry["name"]: _real(interpreter.get_tensor(detail["index"]), detail).reshape(entry["shape"])
            for entry, detail in zip(self.outputs[part], details, strict=True)
        }

    def close(self) -> None:
        """Drop the interpreters and their memory."""
        self.interpreters.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> LiteRtRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    options: `threads` (one by default). Raises RuntimeError with one line.
    """
    interpreters = {}
    for name, part in parts.items():
        file = Path(folder) / part["file"]
        if not file.is_file():
            raise RuntimeError(f"no file {file} for part {name!r}")
        try:
            interpreters[name] = Interpreter(model_path=str(file), num_threads=int((options or {}).get("threads", 1)))
            interpreters[name].allocate_tensors()
        except (RuntimeError, ValueError) as exc:
            reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:300]
            raise RuntimeError(f"LiteRT cannot load {file}: {reason}") from exc
    return LiteRtRunner(interpreters, parts)


def _real(values: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Give an output its values: ai-edge-quantizer leaves one in integers that the graph reads on as well."""
    scale, zero = detail["quantization"]
    if not scale or values.dtype.kind == "f":
        return values
    real: NDArray[Any] = ((values.astype(np.float32) - zero) * scale).astype(np.float32)
    return real


def _ordered(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort tensors as the traced module has them: litert-torch numbers them, `…_args_10`, `…_output_2_output`."""
    return sorted(details, key=lambda detail: [int(word) for word in detail["name"].split("_") if word.isdigit()])
