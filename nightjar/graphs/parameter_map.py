"""Which initializer of an ONNX graph holds which parameter of the modules that it was traced from.

`parameters.json` lies beside ONNX graphs. With it, weights are read under their modules' names, also after a rewrite,
and a converter that reads TorchScript can trace those modules in its own environment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from nightjar.errors import BadOptions, Broken
from nightjar.graphs.onnx_graph import constant_values

FILE = "parameters.json"

Location = tuple[str, bool]  # the initializer, and whether it holds the parameter transposed


class ParameterMap(BaseModel, frozen=True):
    """The content of parameters.json."""

    module: str = Field(description="what builds modules from parameters: rebuild(model, part, weights)")
    code: dict[str, str] = Field(description="that module's files by content: other code gives the graph another key")
    parts: dict[str, dict[str, Location]]


def write_parameter_map(graphs: Path, parameters: ParameterMap) -> None:
    """Write parameters.json."""
    (graphs / FILE).write_text(parameters.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_parameter_map(graphs: Path) -> ParameterMap:
    """Read parameters.json; raises BadOptions for graphs that have none."""
    path = graphs / FILE
    if not path.is_file():
        raise BadOptions(
            f"{graphs} has no {FILE}, which maps weights to parameters, so its graphs cannot be traced elsewhere; "
            "export them as ONNX with a family that has a trace.py"
        )
    return ParameterMap.model_validate_json(path.read_bytes())


def locate_parameters(model: Any, parameters: Mapping[str, np.ndarray]) -> dict[str, Location]:
    """Find every parameter among a graph's constants, by name where the exporter kept it, else by value.

    Of several with equal values, the one whose reader has the parameter's scope in its name is taken. Raises Broken.
    """
    constants = constant_values(model.graph)
    readers = {name: node.name for node in reversed(model.graph.node) for name in node.input}  # the first of each
    locations: dict[str, Location] = {}
    taken: set[str] = set()
    for name, value in parameters.items():
        if name in constants and _equal(constants[name], value):
            locations[name] = (name, False)
            continue
        flips = (False, True) if value.ndim == 2 else (False,)
        found = [(n, flip) for n, c in constants.items() for flip in flips if _equal(c.T if flip else c, value)]
        scope = "/" + name.rpartition(".")[0].rpartition(".")[0].replace(".", "/").replace("blocks/", "blocks.")
        found.sort(key=lambda location: (location[0] in taken, not readers.get(location[0], "").startswith(scope)))
        if not found:
            raise Broken(f"no initializer of the graph holds '{name}': report it with the version of torch")
        locations[name] = found[0]
        taken.add(found[0][0])
    return locations


def read_parameters(model: Any, locations: Mapping[str, Location]) -> dict[str, np.ndarray]:
    """Return a graph's weights by their parameters' names, contiguous float32."""
    constants = constant_values(model.graph)
    return {
        name: np.ascontiguousarray(constants[place].T if transposed else constants[place], np.float32)
        for name, (place, transposed) in locations.items()
    }


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    # Most differ in the first row, and large-v3 has thousands of pairs with millions of values each.
    return np.array_equal(one[:1], other[:1]) and np.array_equal(one, other)
