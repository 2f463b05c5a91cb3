"""Files compiled elsewhere: their inputs and outputs, checked against the graphs of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nightjar.errors import BadInput
from nightjar.graphs.tensor_spec import TensorSpec


class FileInterface(BaseModel, frozen=True):
    """Inputs and outputs of a compiled file, in order, as its target reads them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PrebuiltPart(BaseModel, frozen=True):
    """The file of one part; `rename` maps its tensor names to this project's where they differ."""

    file: Path
    graph: FileInterface
    rename: dict[str, str] = {}


class PrebuiltFiles(BaseModel, frozen=True):
    """A set of files: its parts by name, and the fields of the recipe that their shapes fix."""

    parts: dict[str, PrebuiltPart]
    recipe: dict[str, Any]


def check_interface(prebuilt: PrebuiltPart, part: str, described: Mapping[str, Any]) -> None:
    """Check a file's tensors against a part of model.json; raises BadInput with the first that differs.

    `described` has "inputs" and "outputs" of name, shape and dtype; their order is free, as sessions pass names.
    """
    advice = "give the --model or --checkpoint that the files were made from"
    for kind, tensors in (("input", prebuilt.graph.inputs), ("output", prebuilt.graph.outputs)):
        expected = {entry["name"]: TensorSpec(**entry) for entry in described[f"{kind}s"]}
        for tensor in tensors:
            wanted = expected.pop(prebuilt.rename.get(tensor.name, tensor.name), None)
            if wanted is None or (wanted.shape, wanted.dtype) != (tensor.shape, tensor.dtype):
                has = f"has {wanted.label} there" if wanted else f"has no such {kind}"
                raise BadInput(
                    f"{prebuilt.file}: {kind} {tensor.label} does not fit: the {part} of this checkpoint {has}; "
                    f"{advice}"
                )
        for missing in expected.values():
            raise BadInput(
                f"{prebuilt.file}: {kind} {missing.label} of this checkpoint's {part} is not in the file; {advice}"
            )
