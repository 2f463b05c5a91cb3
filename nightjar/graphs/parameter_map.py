"""Which initializer of an ONNX graph holds which parameter of the modules that it was traced from.

`parameters.json` lies beside ONNX graphs. With it, weights come out of a graph under the names that its modules have,
after a rewrite too, and a converter that reads TorchScript can trace those modules where it lives.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from nightjar.errors import BadOptions, Broken

FILE = "parameters.json"

Location = tuple[str, bool]  # the initializer, and whether it holds the parameter transposed


class ParameterMap(BaseModel, frozen=True):
    """The content of parameters.json."""

    module: str = Field(description="what builds modules from parameters: rebuild(model, part, weights)")
    code: dict[str, str] = Field(description="that module's files, by content: a graph is of another key with them")
    parts: dict[str, dict[str, Location]]


def write_parameter_map(graphs: Path, places: ParameterMap) -> None:
    """Write parameters.json."""
    (graphs / FILE).write_text(places.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_parameter_map(graphs: Path) -> ParameterMap:
    """Read parameters.json; raises BadOptions for graphs that have none."""
    path = graphs / FILE
    if not path.is_file():
        raise BadOptions(
            f"{graphs} does not say which weights are which parameters: these graphs cannot be traced elsewhere; "
            "export them as ONNX with a family that has a trace.py"
        )
    return ParameterMap.model_validate_json(path.read_bytes())


def locate_parameters(model: Any, parameters: Mapping[str, np.ndarray]) -> dict[str, Location]:
    """Find every parameter among a graph's initializers, by name where the exporter kept it, else by value.

    Of several with equal values that one is taken whose reader has the parameter's scope in its name. Raises Broken.
    """
    stored = _stored(model)
    readers: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, node.name)
    places: dict[str, Location] = {}
    taken: set[str] = set()
    for name, value in parameters.items():
        if name in stored and _equal(stored[name], value):
            places[name] = (name, False)
            continue
        found = [(other, flip) for other, array in stored.items() if (flip := _holds(array, value)) is not None]
        scope = "/" + name.rpartition(".")[0].rpartition(".")[0].replace(".", "/").replace("blocks/", "blocks.")
        found.sort(key=lambda place: (place[0] in taken, not readers.get(place[0], "").startswith(scope)))
        if not found:
            raise Broken(f"no initializer of the graph holds '{name}': report it with the version of torch")
        places[name] = found[0]
        taken.add(found[0][0])
    return places


def read_parameters(model: Any, places: Mapping[str, Location]) -> dict[str, np.ndarray]:
    """Return a graph's weights by their parameters' names, contiguous float32."""
    stored = _stored(model)
    return {
        name: np.ascontiguousarray(stored[place].T if flip else stored[place], np.float32)
        for name, (place, flip) in places.items()
    }


def _stored(model: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _holds(stored: np.ndarray, value: np.ndarray) -> bool | None:
    """Say whether an initializer holds a value as it is (False), transposed (True), or not (None)."""
    if _equal(stored, value):
        return False
    return True if stored.ndim == 2 and value.ndim == 2 and _equal(stored.T, value) else None


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(np.array_equal(one, other))
