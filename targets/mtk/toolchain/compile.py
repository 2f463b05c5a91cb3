"""Trace and convert one part inside MediaTek's environment, in the working folder.

convert   weights.npz [, samples/*.npz] [, CONFIG]   -> PART.pt, PART.tflite [, CONFIG]

CONFIG is a precision_config_file: with a precision_proportion the converter writes it, without one it reads it. Every
attribute is set only where this version of the converter has it, and which it has not is said.
"""

import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

EXPORT_SPEC = "npsdk_v6"  # operators of MediaTek's own, as its compiler of NeuroPilot 8 takes them


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job: {"part", "module", "model", "settings": {attribute: value}, "config": file or ""}.

    Returns the converter's and torch's versions, the attributes that were set and those that this version has not.
    """
    import mtk_converter  # type: ignore[import-not-found]  # in the vendor's environment only
    import torch

    part = job["part"]
    model = json.loads(Path(job["model"]).read_text(encoding="utf-8"))
    with np.load("weights.npz") as stored:
        made = importlib.import_module(job["module"]).rebuild(model, part, dict(stored))
    inputs = tuple(made.inputs.values())
    trace(torch, made.module, inputs, Path(f"{part}.pt"))
    converter = open_converter(mtk_converter, Path(f"{part}.pt"), inputs)
    wanted = dict(job["settings"])
    if wanted.get("quantize"):
        wanted["calibration_data_gen"] = samples_of(Path("samples"))
    if job["config"]:
        wanted["precision_config_file"] = job["config"]
    done, skipped = settle(converter, wanted)
    convert(converter, Path(f"{part}.tflite"))
    config = Path(job["config"]) if job["config"] else None
    if config is not None and "precision_config_file" in done and not config.is_file():
        raise RuntimeError(f"mtk_converter took precision_config_file and wrote no {config.name}")
    return {
        "converter": str(getattr(mtk_converter, "__version__", "unknown")),
        "torch": str(torch.__version__),
        "attributes": {name: _said(value) for name, value in done.items()},
        "skipped": skipped,
    }


def trace(torch: Any, module: Any, inputs: tuple[Any, ...], file: Path) -> None:
    """Trace a module to TorchScript with this environment's torch."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, inputs, check_trace=False).save(str(file))


def open_converter(mtk_converter: Any, file: Path, inputs: tuple[Any, ...]) -> Any:
    """Open a TorchScript file; the types of its inputs are told where this version asks for them."""
    make: Callable[..., Any] = mtk_converter.PyTorchConverter.from_script_module_file
    known = _parameters(make)
    shapes = [list(tensor.shape) for tensor in inputs]
    types = {"input_types": [tensor.dtype for tensor in inputs]} if known is None or "input_types" in known else {}
    return make(str(file), shapes, **types)


def samples_of(folder: Path) -> Callable[[], Iterator[list[np.ndarray]]]:
    """Return what the converter wants of calibration data: a callable whose generator yields lists in input order."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise RuntimeError("there is no calibration sample")

    def generate() -> Iterator[list[np.ndarray]]:
        for number, path in enumerate(files, 1):
            with np.load(path) as sample:
                yield [sample[f"arr_{i}"] for i in range(len(sample.files))]
            print(f"Calibrating: {100 * number // len(files)}%|#| {number}/{len(files)}", flush=True)

    return generate


def settle(converter: Any, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Set the attributes that this version has; return what was set, and the names of the others."""
    done, skipped = {}, []
    for name, value in wanted.items():
        if hasattr(converter, name):
            setattr(converter, name, value)
            done[name] = value
        else:
            skipped.append(name)
            print(f"this mtk_converter has no {name}: left out", file=sys.stderr)
    if "quantize" in skipped or ("calibration_data_gen" in skipped and wanted.get("quantize")):
        raise RuntimeError(
            "this mtk_converter cannot be told what to quantize: it has no quantize or calibration_data_gen"
        )
    return done, sorted(skipped)


def convert(converter: Any, out: Path) -> None:
    """Write the .tflite; a version that gives bytes back is asked for those."""
    known = _parameters(converter.convert_to_tflite)
    spec = {"tflite_op_export_spec": EXPORT_SPEC} if known is None or "tflite_op_export_spec" in known else {}
    if known is None or "output_file" in known:
        converter.convert_to_tflite(output_file=str(out), **spec)
    else:
        out.write_bytes(converter.convert_to_tflite(**spec))
    if not out.is_file() or not out.stat().st_size:
        raise RuntimeError(f"mtk_converter reports success and wrote no {out.name}")


def _parameters(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """List a function's parameters, None where it does not say or takes any."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled code without a signature
        return None
    return None if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()) else known


def _said(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str, dict, list)) else "a generator"
