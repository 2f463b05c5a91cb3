"""Check the toolkit: import it, build two ops and simulate them."""

import importlib.metadata
from typing import Any

import numpy as np

from targets.rknn.toolchain.sdk import SdkError, call_toolkit, open_toolkit


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the toolkit's version and the float16 error of the simulator; raises SdkError above 1 %."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.linspace(-1, 1, 32 * 16, dtype=np.float32).reshape(32, 16)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Relu", ["product"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "probe.onnx")
    toolkit = open_toolkit()
    call_toolkit("config", toolkit.config, target_platform="rk3588")
    call_toolkit("load_onnx", toolkit.load_onnx, model="probe.onnx")
    call_toolkit("build", toolkit.build, do_quantization=False)
    call_toolkit("export_rknn", toolkit.export_rknn, "probe.rknn")
    call_toolkit("init_runtime", toolkit.init_runtime)
    x = np.cos(np.arange(8 * 32, dtype=np.float32)).reshape(1, 8, 32)
    found = call_toolkit("inference", toolkit.inference, inputs=[x])[0]
    wanted = np.maximum(x @ weight, 0)
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not error < 0.01:
        raise SdkError(f"the simulator is {error:.1%} off on two ops")
    toolkit.release()
    return {"toolkit": importlib.metadata.version("rknn-toolkit2"), "error": error}
