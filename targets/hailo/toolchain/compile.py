"""Take one part one step further inside the toolchain's environment; the host says which, and what it is made from.

translate   an ONNX graph, and where to begin and end   -> translated.har, the network's layers
optimize    translated.har, a model script, samples     -> optimized.har
compile     optimized.har, more of the script           -> compiled.har, .hef
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from targets.hailo.toolchain.sdk import known_arguments, layers, open_runner, require, version


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do one step; what the DFC raises comes back as `{"refused": {"kind", "message"}}`, for the host to sort.

    job: {"kind", …} with absolute paths.
    """
    try:
        steps = {"translate": translate, "optimize": optimize, "compile": compile_hef}
        return {"version": version(), **steps[job["kind"]](job)}
    except (ImportError, MemoryError):
        raise
    except Exception as exc:  # the import paths of its classes change with the version
        traceback.print_exc()
        return {"refused": {"kind": type(exc).__name__, "message": str(exc)[:4000]}}


def translate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a graph between its start and end nodes, as the names and shapes of the job say."""
    runner = open_runner(hw_arch=job["hw_arch"])
    wanted = {
        "start_node_names": job["starts"],
        "end_node_names": job["ends"],
        "net_input_shapes": job["shapes"],
        "net_input_format": input_format(job["shapes"]),
    }
    wanted = {name: value for name, value in wanted.items() if value}
    runner.translate_onnx_model(job["model"], job["network"], **known_arguments(runner.translate_onnx_model, wanted))
    runner.save_har(job["har"])
    require(job["har"])
    found, outputs = layers(runner)
    return {"layers": found, "outputs": outputs}


def input_format(shapes: Mapping[str, list[int]]) -> dict[str, list[Any]]:
    """Say of rows (1, n, d) that d are channels; (1, c, h, w) is what the parser takes four dimensions for."""
    try:
        from hailo_sdk_client.exposed_definitions import Dims  # type: ignore[import-not-found]
    except ImportError:
        return {}
    four, rows = [Dims.BATCH, Dims.CHANNELS, Dims.HEIGHT, Dims.WIDTH], [Dims.BATCH, Dims.WIDTH, Dims.CHANNELS]
    if all(len(shape) == 4 for shape in shapes.values()):
        return {}
    return {name: four if len(shape) == 4 else rows[3 - len(shape) :] for name, shape in shapes.items()}


def optimize(job: Mapping[str, Any]) -> dict[str, Any]:
    """Quantize by a model script and samples, an array (n, h, w, c) per input layer."""
    runner = open_runner(har=job["source"])
    runner.load_model_script(job["script"])
    data = {layer: np.load(file, mmap_mode="r", allow_pickle=False) for layer, file in job["data"].items()}
    runner.optimize(data, **known_arguments(runner.optimize, {"work_dir": str(Path.cwd())}))
    runner.save_har(job["har"])
    require(job["har"])
    return {}


def compile_hef(job: Mapping[str, Any]) -> dict[str, Any]:
    """Find every layer a place on the chip and write the .hef."""
    runner = open_runner(har=job["source"])
    if job["script"]:
        runner.load_model_script(job["script"], **known_arguments(runner.load_model_script, {"append": True}))
    hef = runner.compile()
    if not hef:
        raise RuntimeError("the DFC reports success and gave no bytes")
    Path(job["hef"]).write_bytes(hef)
    runner.save_har(job["har"])
    require(job["har"])
    return {}
