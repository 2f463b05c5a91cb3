"""Convert one part inside the toolchain's environment; three kinds of job, all in the working folder.

float     NAME.onnx                                         -> NAME.rknn, NAME.sim.onnx, NAME.sim.json
quantize  NAME.onnx, dataset.txt                            -> NAME.model, NAME.data, NAME.quantization.cfg
hybrid    NAME.model, NAME.data, NAME.quantization.cfg      -> NAME.rknn, NAME.sim.onnx, NAME.sim.json

Quantization parameters cost minutes, a build from them seconds: hence two steps (the toolkit's hybrid quantization).
Paths are relative, because the toolkit writes them into its files.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from targets.rknn.toolchain.sdk import SdkError, checked, known_arguments, open_toolkit

# What the simulator asks of the graph object beside the graph.
SETTINGS = ("act_quant_dtype", "const_share_tab", "do_quantization", "quantize_dtype", "unsqueeze_2d_mode")


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job; returns the toolkit's version and the layers it made: name, op, inputs, outputs.

    job: {"kind", "name", "config": {argument of RKNN.config: value}}.
    """
    name = job["name"]
    if job["kind"] == "quantize":
        layers = quantize(name, job["config"])
    else:
        toolkit = open_toolkit(verbose=True)  # its table of layers is read from the log
        _keep_no_checks()
        if job["kind"] == "float":
            configure(toolkit, name, job["config"])
            checked("build", toolkit.build, do_quantization=False)
        else:
            step2 = toolkit.hybrid_quantization_step2
            checked("hybrid_quantization_step2", step2, f"{name}.model", f"{name}.data", f"{name}.quantization.cfg")
        checked("export_rknn", toolkit.export_rknn, f"{name}.rknn")
        _require(f"{name}.rknn")
        layers = save_for_simulator(toolkit, name)
        toolkit.release()
    return {"toolkit": importlib.metadata.version("rknn-toolkit2"), "layers": layers}


def configure(toolkit: Any, name: str, config: dict[str, Any]) -> None:
    """Set the options this version knows and load the graph."""
    checked("config", toolkit.config, **known_arguments(toolkit.config, config))
    checked("load_onnx", toolkit.load_onnx, model=f"{name}.onnx")


def quantize(name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Collect quantization parameters over dataset.txt; return the layers of the optimised graph."""
    import onnx

    toolkit = open_toolkit()
    configure(toolkit, name, config)
    checked("hybrid_quantization_step1", toolkit.hybrid_quantization_step1, dataset="dataset.txt", proposal=False)
    for suffix in ("model", "data", "quantization.cfg"):
        _require(f"{name}.{suffix}")
    toolkit.release()
    return layers_of(onnx.load(f"{name}.model", load_external_data=False))


def save_for_simulator(toolkit: Any, name: str) -> list[dict[str, Any]]:
    """Write what the simulator works on: the optimised graph, and its tables of ranges and inputs as JSON.

    The toolkit itself cannot simulate what another process built, and building a decoder takes several seconds.
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


def _keep_no_checks() -> None:
    """Keep a verbose build from writing the graph three times as check<n>_*.onnx: a third of its seconds (2.5.0)."""
    from rknn.api import ir_graph  # type: ignore[import-not-found]

    graph = getattr(ir_graph, "IRGraph", None)
    save = getattr(graph, "save_onnx", None)
    if graph is None or save is None:  # another version, which may write what it likes
        return

    def save_onnx(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        return None if Path(path).name.startswith("check") else save(self, path, *args, **kwargs)

    graph.save_onnx = save_onnx


def layers_of(model: Any) -> list[dict[str, Any]]:
    """List the layers of a graph the toolkit optimised."""
    return [
        {"name": node.name, "op": node.op_type, "inputs": list(node.input), "outputs": list(node.output)}
        for node in model.graph.node
    ]


def _require(file: str) -> None:
    if not Path(file).is_file() or not Path(file).stat().st_size:
        raise SdkError(f"the toolkit reports success and wrote no {file}")
