"""A strict double of mtk_converter 8.13, made from its documented signatures (public code; the SDK itself is licensed).

It runs TorchScript operator by operator, writes a real .tflite with MTKEXT operators, and appends the TorchScript so
that its executor can run it. A wrong name, type, order or sequence of calls raises. What fails on purpose is in
`inject.json`: {"convert": message, "empty", "no_mtkext", "foreign_names": true, "without": [attributes]}.
"""

import inspect
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtk_converter.graph import Quantizer, convert, split

__version__ = "8.13.0"

MARK = b"TORCHSCRIPT"
ATTRIBUTES = {
    "quantize": bool,
    "calibration_data_gen": object,
    "calibration_method": str,
    "precision_proportion": (dict, type(None)),
    "precision_config_file": str,
    "use_per_output_channel_quantization": bool,
    "prepend_input_quantize_ops": bool,
    "append_output_dequantize_ops": bool,
    "input_value_ranges": (list, type(None)),
}
PRECISIONS = {"sym8W_asym8A": "int8", "sym8W_sym16A": "int16"}


def injected() -> dict[str, Any]:
    path = Path("inject.json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    common = Path(__file__).with_name("inject.json")
    return found | (json.loads(common.read_text()) if common.is_file() else {})


class PyTorchConverter:
    """Opened by `from_script_module_file`, told by attributes, run once by `convert_to_tflite`."""

    def __init__(self, module: Any, shapes: list[list[int]], types: list[Any], source: bytes) -> None:
        without = injected().get("without", ())
        vars(self).update(_module=module, _shapes=shapes, _types=types, _source=source, _done=False)
        vars(self).update({name: None for name in ATTRIBUTES if name not in without})
        vars(self).update({"quantize": False} if "quantize" not in without else {})

    @classmethod
    def from_script_module_file(
        cls, path: str, input_shapes: list[list[int]], input_types: list[Any] | None = None
    ) -> Any:
        if not isinstance(path, str) or not path.endswith(".pt"):
            raise TypeError(f"path of a script module expected, not {path!r}")
        if not all(isinstance(shape, list) and all(type(n) is int for n in shape) for shape in input_shapes):
            raise TypeError("input_shapes is a list of lists of int")
        types = input_types or [torch.float32] * len(input_shapes)
        if len(types) != len(input_shapes) or not all(isinstance(t, torch.dtype) for t in types):
            raise TypeError("input_types is a list of torch dtypes, one per input")
        return cls(torch.jit.load(path), input_shapes, types, Path(path).read_bytes())

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self):
            raise AttributeError(f"PyTorchConverter has no attribute {name!r}")
        if not isinstance(value, ATTRIBUTES[name]):
            raise TypeError(f"{name} is {ATTRIBUTES[name]}, not {type(value)}")
        object.__setattr__(self, name, value)

    def convert_to_tflite(
        self, output_file: str | None = None, tflite_op_export_spec: str = "builtin_first"
    ) -> bytes | None:
        if self._done:
            raise RuntimeError("a converter converts once")
        vars(self)["_done"] = True
        inject = injected()
        if "convert" in inject:
            raise RuntimeError(inject["convert"])
        own = tflite_op_export_spec.startswith("npsdk_v") and not inject.get("no_mtkext")
        zeros = [torch.zeros(shape, dtype=kind) for shape, kind in zip(self._shapes, self._types, strict=True)]
        content = convert(self._module, zeros, own, self._quantizer())
        content = b"" if inject.get("empty") else content + MARK + self._source
        config = vars(self).get("precision_config_file")
        if config and inject.get("config") == "none":
            Path(config).unlink()
        elif config and inject.get("config") == "odd":
            Path(config).write_text('{"specs": []}')
        if output_file is None:
            return content
        Path(output_file).write_bytes(content)
        return None

    def _quantizer(self) -> Quantizer | None:
        if not vars(self).get("quantize"):
            return None
        generator = self.calibration_data_gen
        if not callable(generator):
            raise TypeError("calibration_data_gen is a callable that returns a generator")
        data = generator()
        if not inspect.isgenerator(data):
            raise TypeError("calibration_data_gen() is no generator")
        count = 0
        for sample in data:
            if not isinstance(sample, list) or [list(a.shape) for a in sample] != self._shapes:
                raise ValueError("a calibration sample is a list of arrays in the order of the inputs")
            if not all(np.isfinite(array).all() for array in sample):
                raise ValueError("a calibration sample is not finite")
            count += 1
        if not count:
            raise ValueError("there is no calibration data")
        proportion, config = self.precision_proportion, vars(self).get("precision_config_file")
        if proportion is not None:
            if not proportion.keys() <= PRECISIONS.keys() or abs(sum(proportion.values()) - 1) > 1e-6:
                raise ValueError(f"precision_proportion {proportion} is none of {', '.join(PRECISIONS)}")
            (name,) = proportion
            return Quantizer(
                PRECISIONS[name], writes=(config, name) if config else None, foreign="foreign_names" in injected()
            )
        if config is None:
            raise ValueError("neither precision_proportion nor precision_config_file is set")
        specs = json.loads(Path(config).read_text())["precision_specs"]
        names = {}
        for spec in specs:
            if spec.keys() != {"act_names", "wgt_names", "param_names", "precision_name"}:
                raise ValueError(f"a precision spec has other keys: {sorted(spec)}")
            for name in spec["act_names"]:
                if name in names:
                    raise ValueError(f"{name} is in two precision specs")
                names[name] = PRECISIONS[spec["precision_name"]]
        return Quantizer("int8", chosen=names)


class TFLiteExecutor:
    """Run a .tflite of this converter's."""

    def __init__(self, path: str) -> None:
        _, source = split(Path(path).read_bytes(), MARK)
        if not source:
            raise RuntimeError(f"{path} cannot be parsed\nby the schema")
        self._module = torch.jit.load(io.BytesIO(source))

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if not isinstance(arrays, list) or not all(isinstance(a, np.ndarray) for a in arrays):
            raise TypeError("run takes a list of arrays")
        with torch.inference_mode():
            found = self._module(*(torch.from_numpy(np.array(a)) for a in arrays))
        return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]
