"""The calibration steps drawn so far: inputs on disk, one file each, rows in memory."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.zipformer.reservoir import Reservoir
from models.zipformer.stream import Array, Tensors
from nightjar.graphs.tensor_spec import TensorSpec
from nightjar.scoring.streaming import stratum_index


class StepRows(NamedTuple):
    """The encoder's rows of a step, and the search's context and token of each."""

    rows: Array  # (rows, width) float32
    contexts: Array  # (rows, context) int64
    tokens: Array  # (rows,) int64


class Steps:
    """Store a fixed number of all steps offered, or every one; several threads may offer at once."""

    def __init__(self, folder: Path, inputs: Sequence[TensorSpec], reservoir: Reservoir | None) -> None:
        """Write into `folder`; reservoir: None stores every step."""
        folder.mkdir(parents=True)
        self.folder, self.inputs, self._reservoir = folder, inputs, reservoir
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []  # numbers of files whose steps were dropped
        self._rows: dict[str, StepRows] = {}

    def offer(self, clip: str, chunk: int, tensors: Tensors) -> str | None:
        """Store a step's inputs and return its name, if it is drawn; drop the steps that it displaces."""
        name = f"{clip}/{chunk}"
        with self._lock:
            displaced = [] if self._reservoir is None else self._reservoir.offer(name, stratum_index(chunk))
            if displaced is None:
                return None
            for other in displaced:
                self._free.append(self._numbers.pop(other))
                self._rows.pop(other, None)  # absent while its clip is running
            self._numbers[name] = self._free.pop() if self._free else len(self._numbers)
            # Raw: an archive of 36 small arrays takes longer to write than the step to run.
            with self._file(name).open("wb") as file:
                for spec in self.inputs:
                    file.write(np.ascontiguousarray(tensors[spec.name], spec.dtype).data)
        return name

    def add_rows(self, name: str, rows: StepRows) -> None:
        """Add a step's rows, unless the step has been dropped."""
        with self._lock:
            if name in self._numbers:
                self._rows[name] = rows

    def __contains__(self, name: str) -> bool:
        """Return whether a step is stored."""
        return name in self._numbers

    def read(self, name: str) -> Tensors:
        """Return a step's inputs as they were offered."""
        data, start, tensors = self._file(name).read_bytes(), 0, {}
        for spec in self.inputs:
            count = int(np.prod(spec.shape))
            tensors[spec.name] = np.frombuffer(data, spec.dtype, count, start).reshape(spec.shape)
            start += tensors[spec.name].nbytes
        return tensors

    def rows(self, name: str) -> StepRows:
        """Return a step's rows."""
        return self._rows[name]

    def chosen(self) -> list[str]:
        """Return the steps drawn, in an order that their names decide and not the order of offers."""
        return sorted(self._numbers) if self._reservoir is None else self._reservoir.chosen()

    def _file(self, name: str) -> Path:
        return self.folder / f"{self._numbers[name]:06d}"


def strata(names: Sequence[str]) -> Counter[int]:
    """Count steps by stratum: their distance from the start of their streams."""
    return Counter(stratum_index(int(name.rpartition("/")[2])) for name in names)
