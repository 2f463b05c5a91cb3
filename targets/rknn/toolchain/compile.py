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

SDK = "rknn-toolkit2"
QUANTIZATION_FILES = ("model", "data", "quantization.cfg")
# What the simulator asks of the graph object besides the graph.
SETTINGS = ("act_quant_dtype", "const_share_tab", "do_quantization", "quantize_dtype", "unsqueeze_2d_mode")


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job; return the toolkit's version and the layers it made: name, op, inputs, outputs.

    job: {"kind", "name", "config": {argument of RKNN.config: value}}.
    """
    name = job["name"]
    if job["kind"] == "quantize":
        layers = quantize(name, job["config"])
    else:
        toolkit = open_toolkit(verbose=True)  # the audit reads the table of layers in the log
        _skip_check_files()
        if job["kind"] == "float":
            configure(toolkit, name, job["config"])
            call_toolkit("build", toolkit.build, do_quantization=False)
        else:
            files = [f"{name}.{suffix}" for suffix in QUANTIZATION_FILES]
            call_toolkit("hybrid_quantization_step2", toolkit.hybrid_quantization_step2, *files)
        call_toolkit("export_rknn", toolkit.export_rknn, f"{name}.rknn")
        require_output("the toolkit", f"{name}.rknn")
        layers = save_for_simulator(toolkit, name)
        toolkit.release()
    return {"toolkit": importlib.metadata.version(SDK), "layers": layers}


def configure(toolkit: Any, name: str, config: dict[str, Any]) -> None:
    """Set the options that this version has and load the graph; `config` takes any keyword and refuses unknown ones."""
    known = inspect.signature(toolkit.config).parameters
    call_toolkit("config", toolkit.config, **supported("toolkit", config, known.__contains__))
    call_toolkit("load_onnx", toolkit.load_onnx, model=f"{name}.onnx")


def quantize(name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Collect quantization parameters over dataset.txt; return the layers of the optimised graph."""
    import onnx

    toolkit = open_toolkit()
    configure(toolkit, name, config)
    step1 = toolkit.hybrid_quantization_step1
    call_toolkit("hybrid_quantization_step1", step1, dataset="dataset.txt", proposal=False)
    for suffix in QUANTIZATION_FILES:
        require_output("the toolkit", f"{name}.{suffix}")
    toolkit.release()
    return layers_of(onnx.load(f"{name}.model", load_external_data=False))


def save_for_simulator(toolkit: Any, name: str) -> list[dict[str, Any]]:
    """Write the simulator's input: the optimised graph, and its tables of ranges and inputs as JSON.

    The toolkit cannot simulate what another process built, and building a decoder takes several seconds.
    """
    base = toolkit.rknn_base
    base.ir.save_onnx(f"{name}.sim.onnx", save_large=True)
    tables = {
        "ranges": base.quantizer.quant_tab,
        "inputs": base.inputs_meta,
        "npu": base.ir.npu_target,
        "settings": {setting: getattr(base.ir, setting) for setting in SETTINGS},
    }
    Path(f"{name}.sim.json").write_text(json.dumps(tables, sort_keys=True), encoding="utf-8")
    return layers_of(base.ir.model)


def _skip_check_files() -> None:
    """Keep a verbose build from writing the graph three times as check<n>_*.onnx: a third of its time (2.5.0)."""
    from rknn.api import ir_graph  # type: ignore[import-not-found]

    graph = getattr(ir_graph, "IRGraph", None)
    save = getattr(graph, "save_onnx", None)
    if graph is None or save is None:  # another version
        return

    def save_onnx(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        return None if Path(path).name.startswith("check") else save(self, path, *args, **kwargs)

    graph.save_onnx = save_onnx


def layers_of(model: Any) -> list[dict[str, Any]]:
    """List the layers of a graph that the toolkit optimised."""
    return [
        {"name": node.name, "op": node.op_type, "inputs": list(node.input), "outputs": list(node.output)}
        for node in model.graph.node
    ]
