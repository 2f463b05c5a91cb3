"""What runners of compiled parts share, on boards and in vendors' environments: input and output checks, clean stdout.

`parts` is the mapping of binary.json: part name to {"file", "inputs", "outputs", ...}. Inputs and outputs are lists of
{"name", "shape", "dtype"} in the order of the compiled graph. Every error is a RuntimeError of one line.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
Tensor = Mapping[str, Any]  # {"name", "shape", "dtype"}
Parts = Mapping[str, Mapping[str, Any]]


def require_part(part: str, parts: Mapping[str, Any]) -> None:
    """Raise RuntimeError for a part that is not open."""
    if part not in parts:
        raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(parts))}")


def require_file(folder: Path, file: str, part: str) -> Path:
    """Return the path of a part's file; raises RuntimeError where it is absent."""
    path = Path(folder) / file
    if not path.is_file():
        raise RuntimeError(f"no file {path} for part {part!r}")
    return path


class PartRunner:
    """Run parts by name on a runtime's handles, one per part; a subclass says how the runtime is called."""

    runtime = "the runtime"  # in messages

    def __init__(self, handles: Mapping[str, Any], parts: Parts) -> None:
        self.handles = dict(handles)
        self.inputs = {name: part["inputs"] for name, part in parts.items()}
        self.outputs = {name: part["outputs"] for name, part in parts.items()}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name; raises RuntimeError for an unknown part, name or shape."""
        results, outputs = self.infer(part, self._in_graph_order(part, {**inputs, **constant})), self.outputs[part]
        if results is None or len(results) != len(outputs):
            raise RuntimeError(f"{self.runtime} gave no result for {part}: see its messages above")
        named = {}
        for entry, result in zip(outputs, results, strict=True):
            array = np.asarray(result)
            if array.size != int(np.prod(entry["shape"])):
                raise RuntimeError(f"{part} gave {entry['name']} as {array.shape}, not {tuple(entry['shape'])}")
            named[entry["name"]] = array.reshape(entry["shape"])
        return named

    def _in_graph_order(self, part: str, given: Tensors) -> list[NDArray[Any]]:
        require_part(part, self.inputs)
        wanted = self.inputs[part]
        if given.keys() != {entry["name"] for entry in wanted}:
            raise RuntimeError(f"{part} takes {', '.join(e['name'] for e in wanted)}, not {', '.join(given)}")
        for entry in wanted:
            shape = given[entry["name"]].shape
            if list(shape) != list(entry["shape"]):
                raise RuntimeError(f"{part} takes {entry['name']} as {tuple(entry['shape'])}, not {shape}")
        return [given[entry["name"]] for entry in wanted]

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[Any] | None:
        """Return the outputs of a part in graph order, None where the runtime failed."""
        raise NotImplementedError

    def release(self, handle: Any) -> None:
        """Free a handle and its memory."""

    def close(self) -> None:
        """Free every handle."""
        for handle in self.handles.values():
            self.release(handle)
        self.handles.clear()
        self.inputs.clear()


def first_line(exc: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class."""
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__


def class_and_line(exc: Exception) -> str:
    """Return the class of an exception and the first line of its message."""
    name, line = type(exc).__name__, first_line(exc)
    return name if line == name else f"{name}: {line}"


@contextlib.contextmanager
def errors_as(
    what: str, describe: Callable[[Exception], str] = first_line, passing: type[Exception] = ImportError
) -> Iterator[None]:
    """Turn an exception of a runtime, of any class, into a RuntimeError `what: why`; those of `passing` stay."""
    try:
        yield
    except passing:
        raise
    except Exception as exc:  # runtimes have classes of their own, without a base
        raise RuntimeError(f"{what}: {describe(exc)}") from exc


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what C code prints on stdout to stderr: a session writes its result lines to stdout."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
