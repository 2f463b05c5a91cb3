"""Run compiled parts in rknn-toolkit2's simulator, from what the compile step saved.

The toolkit simulates only what the same process built. Its simulator works on the optimised graph and two tables, so
those are put back as they were, without the build: the same outputs, to a step of float16 (bound.py). This reaches into
the toolkit's classes as they are in the pinned version.
"""

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.rknn.toolchain.bound import binding
from targets.rknn.toolchain.sdk import SdkError, captured, checked, open_toolkit

Tensors = dict[str, NDArray[Any]]


class SimulatorRunner:
    """Hold one simulator per part."""

    def __init__(self, toolkits: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.toolkits = dict(toolkits)
        graphs = {part: toolkit.rknn_base.ir.model.graph for part, toolkit in toolkits.items()}
        self.weights = {part: {tensor.name for tensor in graph.initializer} for part, graph in graphs.items()}
        attributes = {part: toolkit.rknn_base.inputs_meta["attrs"] for part, toolkit in toolkits.items()}
        self.inputs = {p: _named(found, parts[p].get("inputs"), is_output=False) for p, found in attributes.items()}
        self.outputs = {p: _named(found, parts[p].get("outputs"), is_output=True) for p, found in attributes.items()}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError with one line."""
        if part not in self.toolkits:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.toolkits))}")
        given = {**inputs, **constant}
        arrays = ordered(part, given, self.inputs[part])
        # As in the graph: the toolkit takes every 4-D input for NHWC unless told.
        layouts = ["nchw"] * len(arrays)
        try:
            with captured(), binding(self.weights[part]):
                results = checked("inference", self.toolkits[part].inference, inputs=arrays, data_format=layouts)
        except SdkError as exc:
            raise RuntimeError(f"the simulator cannot run {part}: {exc}") from exc
        found = {name: np.asarray(result) for (name, _), result in zip(self.outputs[part], results, strict=True)}
        return {name: found[name].reshape(shape) for name, shape in self.outputs[part]}

    def close(self) -> None:
        """Release the simulators and their memory."""
        with captured():
            for toolkit in self.toolkits.values():
                toolkit.release()
        self.toolkits.clear()


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> SimulatorRunner:
    """Open `parts` (name to {"simulator": {"graph", "tables"}, ...}, as in binary.json) that lie in `folder`.

    Raises RuntimeError with one line.
    """
    toolkits = {}
    for name, part in parts.items():
        files = [Path(folder) / part["simulator"][kind] for kind in ("graph", "tables")]
        for file in files:
            if not file.is_file():
                raise RuntimeError(f"no file {file} for part {name!r}")
        try:
            with captured():
                toolkits[name] = _restored(*files)
        except Exception as exc:  # onnx's, the toolkit's, json's
            raise RuntimeError(f"the simulator cannot load {files[0]}: {_first_line(exc)}") from exc
    return SimulatorRunner(toolkits, parts)


def ordered(part: str, given: Mapping[str, NDArray[Any]], wanted: list[tuple[str, list[int]]]) -> list[NDArray[Any]]:
    """Put inputs in the graph's order; raises RuntimeError for a name or shape that is not the graph's."""
    names = [name for name, _ in wanted]
    if given.keys() != set(names):
        raise RuntimeError(f"{part} takes {', '.join(names)}, not {', '.join(given)}")
    for name, shape in wanted:
        if list(given[name].shape) != list(shape):
            raise RuntimeError(f"{part} takes {name} as {tuple(shape)}, not {given[name].shape}")
    return [given[name] for name in names]


def _restored(graph: Path, tables: Path) -> Any:
    """Make a toolkit object that stands where building and init_runtime would have left it."""
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


def _named(
    attributes: Mapping[str, Mapping[str, Any]], described: list[Mapping[str, Any]] | None, is_output: bool
) -> list[tuple[str, list[int]]]:
    """List name and shape of the inputs or outputs in order, by the names of binary.json where it has them."""
    found = sorted((a["idx"], name, a["shape"]) for name, a in attributes.items() if a["is_output"] == is_output)
    names = [entry["name"] for entry in described or []] or [name for _, name, _ in found]
    return [(name, list(shape)) for name, (_, _, shape) in zip(names, found, strict=True)]


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
