"""Files made elsewhere: what they say of themselves, and whether that is what a checkpoint's graphs have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nightjar.errors import BadInput
from nightjar.graphs.tensor_spec import Input


class Graph(BaseModel, frozen=True):
    """Describe a compiled file as its target reads it: inputs and outputs with name, shape and dtype, in order."""

    inputs: tuple[Input, ...]
    outputs: tuple[Input, ...]


class GivenPart(BaseModel, frozen=True):
    """Say which part a file is, and what this project calls those of its tensors that have other names there."""

    file: Path
    graph: Graph
    rename: dict[str, str] = {}


class Given(BaseModel, frozen=True):
    """Say what a set of files is: its parts by name, and the fields of the recipe that their shapes fix."""

    parts: dict[str, GivenPart]
    recipe: dict[str, Any]


def hold_against(given: GivenPart, part: str, described: Mapping[str, Any]) -> None:
    """Hold a file's tensors against a part of model.json; raises BadInput with the first that differs.

    `described` has "inputs" and "outputs" of name, shape and dtype; their order is free, as sessions pass names.
    """
    for kind, found in (("input", given.graph.inputs), ("output", given.graph.outputs)):
        expected = {entry["name"]: Input(**entry) for entry in described[f"{kind}s"]}
        for tensor in found:
            wanted = expected.pop(given.rename.get(tensor.name, tensor.name), None)
            if wanted is None or (wanted.shape, wanted.dtype) != (tensor.shape, tensor.dtype):
                has = f"has {tell(wanted)} there" if wanted else f"has no such {kind}"
                raise BadInput(
                    f"{given.file}: {kind} {tell(tensor)} does not fit: the {part} of this checkpoint {has}; "
                    "give the --model or --checkpoint that the files were made from"
                )
        if expected:
            raise BadInput(
                f"{given.file}: {kind} {tell(next(iter(expected.values())))} of this checkpoint's {part} is not in it; "
                "give the --model or --checkpoint that the files were made from"
            )


def tell(tensor: Input) -> str:
    """Say a tensor's name, shape and dtype."""
    return f"{tensor.name} ({', '.join(map(str, tensor.shape))}) {tensor.dtype}"
