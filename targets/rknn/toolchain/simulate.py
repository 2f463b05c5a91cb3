"""Run compiled parts in rknn-toolkit2's simulator, from the files that the compile step wrote.

The toolkit simulates only what the same process built. Its simulator works on the optimised graph and two tables, so
those are restored here without the build. Outputs are the same to a float16 step (constant_weights.py). This relies on
the toolkit's internal classes of the pinned version.
"""

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nightjar.device.part_io import Parts, Tensor, Tensors, first_line, named_outputs, ordered_inputs, require_file
from targets.rknn.toolchain.constant_weights import constant_weights
from targets.rknn.toolchain.sdk import SdkError, call_toolkit, capture_output, open_toolkit


class SimulatorRunner:
    """Hold one simulator per part."""

    def __init__(self, toolkits: Mapping[str, Any], parts: Parts) -> None:
        self.toolkits = dict(toolkits)
        graphs = {part: toolkit.rknn_base.ir.model.graph for part, toolkit in toolkits.items()}
        self.weights = {part: {tensor.name for tensor in graph.initializer} for part, graph in graphs.items()}
        attributes = {part: toolkit.rknn_base.inputs_meta["attrs"] for part, toolkit in toolkits.items()}
        self.inputs = {p: _tensors(found, parts[p].get("inputs"), is_output=False) for p, found in attributes.items()}
        self.outputs = {p: _tensors(found, parts[p].get("outputs"), is_output=True) for p, found in attributes.items()}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        arrays = ordered_inputs(part, self.inputs, {**inputs, **constant})
        layouts = ["nchw"] * len(arrays)  # the toolkit takes every 4-D input for NHWC otherwise
        try:
            with capture_output(), constant_weights(self.weights[part]):
                results = call_toolkit("inference", self.toolkits[part].inference, inputs=arrays, data_format=layouts)
        except SdkError as exc:
            raise RuntimeError(f"the simulator cannot run {part}: {exc}") from exc
        return named_outputs(part, self.outputs[part], results, "the simulator")

    def close(self) -> None:
        """Release the simulators and their memory."""
        with capture_output():
            for toolkit in self.toolkits.values():
                toolkit.release()
        self.toolkits.clear()
        self.inputs.clear()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> SimulatorRunner:
    """Open `parts` (name to {"simulator": {"graph", "tables"}, ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    toolkits = {}
    for name, part in parts.items():
        graph, tables = (require_file(folder, part["simulator"][kind], name) for kind in ("graph", "tables"))
        try:
            with capture_output():
                toolkits[name] = _restore_toolkit(graph, tables)
        except Exception as exc:  # of onnx, of the toolkit or of json
            raise RuntimeError(f"the simulator cannot load {graph}: {first_line(exc)}") from exc
    return SimulatorRunner(toolkits, parts)


def _restore_toolkit(graph: Path, tables: Path) -> Any:
    """Make a toolkit object in the state that building and init_runtime leave it in."""
    import onnx

    from rknn.api.ir_graph import IRGraph  # type: ignore[import-not-found]  # in the toolchain's environment only
    from rknn.api.simulator import Simulator  # type: ignore[import-not-found]

    saved = json.loads(tables.read_text(encoding="utf-8"))
    toolkit = open_toolkit()
    base = toolkit.rknn_base
    model = onnx.load(graph, load_external_data=False)
    base.ir = IRGraph(model, opt_level=0, npu_target=saved["npu"], weights_for_align=[], initializer_dat={})
    for name, value in saved["settings"].items():
        setattr(base.ir, name, value)
    base.inputs_meta = saved["inputs"]
    base.quantizer = types.SimpleNamespace(quant_tab=saved["ranges"], ir=base.ir)
    base.simulator = Simulator(base)
    base.use_simulator = "onnx"
    return toolkit


def _tensors(
    attributes: Mapping[str, Mapping[str, Any]], described: list[Mapping[str, Any]] | None, is_output: bool
) -> list[Tensor]:
    """List inputs or outputs as {"name", "shape"} in order, by the names of binary.json where it has them."""
    found = sorted((a["idx"], name, a["shape"]) for name, a in attributes.items() if a["is_output"] == is_output)
    names = [entry["name"] for entry in described or []] or [name for _, name, _ in found]
    return [{"name": name, "shape": list(shape)} for name, (_, _, shape) in zip(names, found, strict=True)]
