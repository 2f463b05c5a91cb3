"""Run one step of the DFC for one part inside the toolchain's environment.

translate   an ONNX graph, its start and end nodes      -> translated.har, the network's layers
optimize    translated.har, a model script, samples     -> optimized.har
compile     optimized.har, more of the script           -> compiled.har, .hef
"""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.sdk_calls import require_output, supported, supports
from targets.hailo.toolchain.sdk import layers, open_runner, version


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do the step `kind` of a job with absolute paths; the DFC's exceptions become {"refused": {kind, message}}."""
    try:
        steps: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]]
        steps = {"translate": translate, "optimize": optimize, "compile": compile_hef}
        return {"version": version(), **(steps[job["kind"]](job) or {})}
    except (ImportError, MemoryError):
        raise
    except Exception as exc:  # the import paths of its classes change with the version
        traceback.print_exc()
        return {"refused": {"kind": type(exc).__name__, "message": str(exc)[:4000]}}


def translate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a graph between its start and end nodes, by the names and shapes of the job."""
    runner = open_runner(hw_arch=job["hw_arch"])
    wanted = {
        "start_node_names": job["starts"],
        "end_node_names": job["ends"],
        "net_input_shapes": job["shapes"],
        "net_input_format": input_format(job["shapes"]),
    }
    given = {name: value for name, value in wanted.items() if value}
    runner.translate_onnx_model(job["model"], job["network"], **supported_arguments(runner.translate_onnx_model, given))
    _save_har(runner, job)
    found, outputs = layers(runner)
    return {"layers": found, "outputs": outputs}


def input_format(shapes: Mapping[str, list[int]]) -> dict[str, list[Any]]:
    """Name the dimensions of inputs: (1, n, d) has d channels; the parser takes four dimensions for (1, c, h, w)."""
    try:
        from hailo_sdk_client.exposed_definitions import Dims  # type: ignore[import-not-found]
    except ImportError:
        return {}
    if all(len(shape) == 4 for shape in shapes.values()):
        return {}
    four, rows = [Dims.BATCH, Dims.CHANNELS, Dims.HEIGHT, Dims.WIDTH], [Dims.BATCH, Dims.WIDTH, Dims.CHANNELS]
    return {name: four if len(shape) == 4 else rows[3 - len(shape) :] for name, shape in shapes.items()}


def optimize(job: Mapping[str, Any]) -> None:
    """Quantize by a model script and samples, an array (n, h, w, c) per input layer."""
    runner = open_runner(har=job["source"])
    runner.load_model_script(job["script"])
    data = {layer: np.load(file, mmap_mode="r", allow_pickle=False) for layer, file in job["data"].items()}
    runner.optimize(data, **supported_arguments(runner.optimize, {"work_dir": str(Path.cwd())}))
    _save_har(runner, job)


def compile_hef(job: Mapping[str, Any]) -> None:
    """Place every layer on the chip and write the .hef."""
    runner = open_runner(har=job["source"])
    if job["script"]:
        runner.load_model_script(job["script"], **supported_arguments(runner.load_model_script, {"append": True}))
    hef = runner.compile()
    if not hef:
        raise RuntimeError("the DFC reports success and gave no bytes")
    Path(job["hef"]).write_bytes(hef)
    _save_har(runner, job)


def supported_arguments(function: Callable[..., Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    return supported("DFC", wanted, lambda name: supports(function, name))


def _save_har(runner: Any, job: Mapping[str, Any]) -> None:
    runner.save_har(job["har"])
    require_output("the DFC", job["har"])
