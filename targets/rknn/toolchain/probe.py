"""Check the toolkit: import it, build two ops and simulate them."""

import importlib.metadata
from typing import Any

import numpy as np

from nightjar.toolchains.sdk_calls import require_close, write_probe_graph
from targets.rknn.toolchain.sdk import call_toolkit, open_toolkit


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the toolkit's version and the float16 error of the simulator; raises RuntimeError above 1 %."""
    weight = np.linspace(-1, 1, 32 * 16, dtype=np.float32).reshape(32, 16)
    write_probe_graph("probe.onnx", "MatMul", weight, ([1, 8, 32], [1, 8, 16]))
    toolkit = open_toolkit()
    call_toolkit("config", toolkit.config, target_platform="rk3588")
    call_toolkit("load_onnx", toolkit.load_onnx, model="probe.onnx")
    call_toolkit("build", toolkit.build, do_quantization=False)
    call_toolkit("export_rknn", toolkit.export_rknn, "probe.rknn")
    call_toolkit("init_runtime", toolkit.init_runtime)
    x = np.cos(np.arange(8 * 32, dtype=np.float32)).reshape(1, 8, 32)
    found = call_toolkit("inference", toolkit.inference, inputs=[x])[0]
    error = require_close("the simulator", found, np.maximum(x @ weight, 0), 0.01)
    toolkit.release()
    return {"toolkit": importlib.metadata.version("rknn-toolkit2"), "error": error}
