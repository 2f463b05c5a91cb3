"""Check the DFC: import it, translate a convolution and run it in float."""

from pathlib import Path
from typing import Any

import numpy as np

from targets.hailo.toolchain.sdk import open_runner, version


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the DFC's version and the error of its float emulator against numpy; raises RuntimeError beyond 1 %."""
    import onnx
    from hailo_sdk_client import InferenceContext  # type: ignore[import-not-found]
    from onnx import TensorProto, helper, numpy_helper

    weight = np.linspace(-1, 1, 16 * 8, dtype=np.float32).reshape(16, 8, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["product"], name="conv", kernel_shape=[1, 1]),
            helper.make_node("Relu", ["product"], ["y"], name="relu"),
        ],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "probe.onnx")
    runner = open_runner(hw_arch="hailo8l")
    runner.translate_onnx_model(str(Path("probe.onnx").resolve()), "probe")
    x = np.cos(np.arange(4 * 4 * 8, dtype=np.float32)).reshape(1, 4, 4, 8)
    with runner.infer_context(InferenceContext.SDK_NATIVE) as context:
        found = np.asarray(runner.infer(context, x)).reshape(4, 4, 16)
    wanted = np.maximum(x[0] @ weight[:, :, 0, 0].T, 0)
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not error < 0.01:
        raise RuntimeError(f"the emulator is {error:.1%} off on a convolution")
    return {"dfc": version(), "error": error}
