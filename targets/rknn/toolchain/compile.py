"""Convert one part inside the toolchain's environment; three kinds of job, all in the working folder.

float     NAME.onnx                                         -> NAME.rknn, NAME.sim.onnx, NAME.sim.json
quantize  NAME.onnx, dataset.txt                            -> NAME.model, NAME.data, NAME.quantization.cfg
hybrid    NAME.model, NAME.data, NAME.quantization.cfg      -> NAME.rknn, NAME.sim.onnx, NAME.sim.json

Quantization parameters cost minutes and a build from them seconds, hence two steps (the toolkit's hybrid quantization).
Paths are relative because the toolkit writes them into its files.
"""

import importlib.metadata
import inspect
import json
from pathlib import Path
from typing import Any

from nightjar.toolchains.sdk_calls import require_output, supported
from targets.rknn.toolchain.sdk import call_toolkit, open_toolkit

QUANTIZATION_FILES = ("model", "data", "quantization.cfg")
# What the simulator asks of the graph object besides the graph.
SETTINGS = ("act_quant_dtype", "const_share_tab", "do_quantization", "quantize_dtype", "unsqueeze_2d_mode")


def load_sdk() -> None:
    """Import the toolkit, once for all calls (nightjar/toolchains/fork_server.py)."""
    import onnx  # noqa: F401

    from rknn.api import RKNN  # type: ignore[import-not-found]  # noqa: F401


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job; return the toolkit's version and the layers it made: name, op, inputs, outputs.

    job: {"kind", "name", "config": {argument of RKNN.config: value}}.
    """
    import onnx

    kind, name = job["kind"], job["name"]
    files = [f"{name}.{suffix}" for suffix in QUANTIZATION_FILES]
    toolkit = open_toolkit(verbose=kind != "quantize")  # the audit reads the table of layers in the log
    _skip_check_files()
    if kind != "hybrid":  # `config` takes any keyword and refuses unknown ones
        config = supported("toolkit", job["config"], inspect.signature(toolkit.config).parameters.__contains__)
        call_toolkit("config", toolkit.config, **config)
        call_toolkit("load_onnx", toolkit.load_onnx, model=f"{name}.onnx")
    if kind == "quantize":
        step1 = toolkit.hybrid_quantization_step1
        call_toolkit("hybrid_quantization_step1", step1, dataset="dataset.txt", proposal=False)
        for file in files:
            require_output("the toolkit", file)
        optimized = onnx.load(f"{name}.model", load_external_data=False)
    else:
        if kind == "float":
            call_toolkit("build", toolkit.build, do_quantization=False)
        else:
            call_toolkit("hybrid_quantization_step2", toolkit.hybrid_quantization_step2, *files)
        call_toolkit("export_rknn", toolkit.export_rknn, f"{name}.rknn")
        require_output("the toolkit", f"{name}.rknn")
        save_for_simulator(toolkit.rknn_base, name)
        optimized = toolkit.rknn_base.ir.model
    layers = [
        {"name": node.name, "op": node.op_type, "inputs": list(node.input), "outputs": list(node.output)}
        for node in optimized.graph.node
    ]
    toolkit.release()
    return {"toolkit": importlib.metadata.version("rknn-toolkit2"), "layers": layers}


def save_for_simulator(base: Any, name: str) -> None:
    """Write the input of simulate.py: the optimised graph, and its tables of ranges and inputs as JSON."""
    base.ir.save_onnx(f"{name}.sim.onnx", save_large=True)
    tables = {
        "ranges": base.quantizer.quant_tab,
        "inputs": base.inputs_meta,
        "npu": base.ir.npu_target,
        "settings": {setting: getattr(base.ir, setting) for setting in SETTINGS},
    }
    Path(f"{name}.sim.json").write_text(json.dumps(tables, sort_keys=True), encoding="utf-8")


def _skip_check_files() -> None:
    """Keep a verbose build from writing the graph three times as check<n>_*.onnx: a third of its time (2.5.0)."""
    from rknn.api.ir_graph import IRGraph  # type: ignore[import-not-found]

    save = IRGraph.save_onnx

    def save_onnx(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        return None if Path(path).name.startswith("check") else save(self, path, *args, **kwargs)

    IRGraph.save_onnx = save_onnx
