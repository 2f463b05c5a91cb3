"""Trace and convert one part inside MediaTek's environment, in the working folder.

convert   PART.npz [, samples/*.npz] [, CONFIG]   -> PART.pt, PART.tflite [, CONFIG]

CONFIG is a precision_config_file: with a precision_proportion the converter writes it, without one it reads it. An
attribute that this version of the converter lacks is skipped, and its name is returned.
"""

import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.sdk_calls import require_output, supported, supports


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job: {"part", "module", "model", "settings": {attribute: value}, "config": file or ""}.

    Return the versions of the converter and torch, the attributes that were set and those that this version lacks.
    """
    import mtk_converter  # type: ignore[import-not-found]  # in the vendor's environment only
    import torch

    part, config = job["part"], job["config"]
    module, inputs = rebuild(job)
    trace(torch, module, inputs, Path(f"{part}.pt"))
    converter = open_converter(mtk_converter, Path(f"{part}.pt"), inputs)
    wanted = dict(job["settings"])
    if wanted["quantize"]:
        wanted["calibration_data_gen"] = calibration_generator(Path("samples"))
    if config:
        wanted["precision_config_file"] = config
    attributes = set_attributes(converter, wanted)
    convert(converter, Path(f"{part}.tflite"))
    if config and "precision_config_file" in attributes and not Path(config).is_file():
        raise RuntimeError(f"mtk_converter took precision_config_file and wrote no {config}")
    return {
        "converter": str(getattr(mtk_converter, "__version__", "unknown")),
        "torch": str(torch.__version__),
        "attributes": {name: "a generator" if callable(value) else value for name, value in attributes.items()},
        "skipped": sorted(wanted.keys() - attributes.keys()),
    }


def rebuild(job: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the torch module of a part, of the weights in PART.npz, and example inputs."""
    model = json.loads(Path(job["model"]).read_text(encoding="utf-8"))
    with np.load(f"{job['part']}.npz") as stored:
        rebuilt = importlib.import_module(job["module"]).rebuild(model, job["part"], dict(stored))
    return rebuilt.module, tuple(rebuilt.inputs.values())


def trace(torch: Any, module: Any, inputs: tuple[Any, ...], file: Path) -> None:
    """Trace a module to TorchScript with this environment's torch."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, inputs, check_trace=False).save(str(file))


def open_converter(mtk_converter: Any, file: Path, inputs: tuple[Any, ...]) -> Any:
    """Open a TorchScript file, with the types of its inputs where this version takes them."""
    make: Callable[..., Any] = mtk_converter.PyTorchConverter.from_script_module_file
    types = {"input_types": [tensor.dtype for tensor in inputs]} if supports(make, "input_types") else {}
    return make(str(file), [list(tensor.shape) for tensor in inputs], **types)


def calibration_generator(folder: Path) -> Callable[[], Iterator[list[np.ndarray]]]:
    """Return a callable whose generator yields each sample as a list in input order, as the converter wants it."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise RuntimeError("there is no calibration sample")

    def generate() -> Iterator[list[np.ndarray]]:
        for number, path in enumerate(files, 1):
            with np.load(path) as sample:
                yield [sample[f"arr_{i}"] for i in range(len(sample.files))]
            print(f"Calibrating: {100 * number // len(files)}%|#| {number}/{len(files)}", flush=True)

    return generate


def set_attributes(converter: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Set the attributes that this version has and return them; raises RuntimeError where it cannot quantize."""
    attributes = supported("mtk_converter", wanted, lambda name: hasattr(converter, name))
    for name, value in attributes.items():
        setattr(converter, name, value)
    if wanted.keys() & {"quantize", "calibration_data_gen"} - attributes.keys():
        raise RuntimeError("this mtk_converter cannot be told what to quantize: no quantize or calibration_data_gen")
    return attributes


def convert(converter: Any, out: Path) -> None:
    """Write the .tflite; a version without output_file returns its bytes."""
    write = converter.convert_to_tflite
    # Operators of MediaTek's own, as its compiler of NeuroPilot 8 takes them.
    spec = {"tflite_op_export_spec": "npsdk_v6"} if supports(write, "tflite_op_export_spec") else {}
    if supports(write, "output_file"):
        write(output_file=str(out), **spec)
    else:
        out.write_bytes(write(**spec))
    require_output("mtk_converter", out)
