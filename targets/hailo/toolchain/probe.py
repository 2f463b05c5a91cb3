"""Check the DFC: import it, translate a convolution and run it in float."""

from pathlib import Path
from typing import Any

import numpy as np

from nightjar.toolchains.sdk_calls import require_close, write_probe_graph
from targets.hailo.toolchain.sdk import open_runner, version


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the DFC's version and the error of its float emulator against numpy; raises RuntimeError above 1 %."""
    from hailo_sdk_client import InferenceContext  # type: ignore[import-not-found]

    weight = np.linspace(-1, 1, 16 * 8, dtype=np.float32).reshape(16, 8, 1, 1)
    write_probe_graph("probe.onnx", "Conv", weight, ([1, 8, 4, 4], [1, 16, 4, 4]), kernel_shape=[1, 1])
    runner = open_runner(hw_arch="hailo8l")
    runner.translate_onnx_model(str(Path("probe.onnx").resolve()), "probe")
    x = np.cos(np.arange(4 * 4 * 8, dtype=np.float32)).reshape(1, 4, 4, 8)
    with runner.infer_context(InferenceContext.SDK_NATIVE) as context:
        found = np.asarray(runner.infer(context, x)).reshape(4, 4, 16)
    wanted = np.maximum(x[0] @ weight[:, :, 0, 0].T, 0)
    return {"dfc": version(), "error": require_close("the emulator", found, wanted, 0.01)}
