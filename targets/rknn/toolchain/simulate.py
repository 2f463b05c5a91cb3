"""Run compiled parts in rknn-toolkit2's simulator, from the files that the compile step wrote.

The toolkit simulates only what the same process built. Its simulator works on the optimised graph and two tables, so
those are restored here without the build. Outputs are the same to a float16 step (constant_weights.py). This relies on
the toolkit's internal classes of the pinned version.
"""

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, errors_as, require_file
from targets.rknn.toolchain.constant_weights import constant_weights
from targets.rknn.toolchain.sdk import call_toolkit, capture_output, open_toolkit


class SimulatorRunner(PartRunner):
    """Hold one simulator per part."""

    runtime = "the simulator"

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[Any] | None:
        toolkit = self.handles[part]
        weights = {tensor.name for tensor in toolkit.rknn_base.ir.model.graph.initializer}
        layouts = ["nchw"] * len(arrays)  # the toolkit takes every 4-D input for NHWC otherwise
        with errors_as(f"the simulator cannot run {part}", str), capture_output(), constant_weights(weights):
            return list(call_toolkit("inference", toolkit.inference, inputs=list(arrays), data_format=layouts))

    def release(self, handle: Any) -> None:
        with capture_output():
            handle.release()


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> SimulatorRunner:
    """Open `parts` (as in binary.json) that lie in `folder`; raises RuntimeError with one line."""
    toolkits = {}
    for name, part in parts.items():
        graph, tables = (require_file(folder, part["simulator"][kind], name) for kind in ("graph", "tables"))
        with errors_as(f"the simulator cannot load {graph}"), capture_output():
            toolkits[name] = _restore_toolkit(graph, tables)
    return SimulatorRunner(toolkits, parts)


def _restore_toolkit(graph: Path, tables: Path) -> Any:
    """Make a toolkit object in the state that building and init_runtime leave it in."""
    import onnx

    from rknn.api.ir_graph import IRGraph  # type: ignore[import-not-found]  # in the toolchain's environment only
    from rknn.api.simulator import Simulator  # type: ignore[import-not-found]

    saved = json.loads(tables.read_text(encoding="utf-8"))
    toolkit = open_toolkit()
    base = toolkit.rknn_base
    model = onnx.load(graph)
    base.ir = IRGraph(model, opt_level=0, npu_target=saved["npu"], weights_for_align=[], initializer_dat={})
    for name, value in saved["settings"].items():
        setattr(base.ir, name, value)
    base.inputs_meta = saved["inputs"]
    base.quantizer = types.SimpleNamespace(quant_tab=saved["ranges"], ir=base.ir)
    base.simulator = Simulator(base)
    base.use_simulator = "onnx"
    return toolkit
