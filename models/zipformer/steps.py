"""The steps of a calibration that are drawn so far: their inputs on disk, a file each, their rows in memory."""

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


class Rows(NamedTuple):
    """What the encoder made of a step, and what the search did with it."""

    rows: Array  # (rows, width) float32
    contexts: Array  # (rows, context) int64
    said: Array  # (rows,) int64


class Steps:
    """Keep a fixed number of all steps offered, or every one; several clips may offer theirs at once."""

    def __init__(self, folder: Path, inputs: Sequence[TensorSpec], reservoir: Reservoir | None) -> None:
        """Write into `folder` until all clips are heard; reservoir: None keeps every step."""
        folder.mkdir(parents=True)
        self.folder, self.inputs, self._reservoir = folder, inputs, reservoir
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []  # numbers of files whose steps were dropped
        self._rows: dict[str, Rows] = {}

    def offer(self, clip: str, chunk: int, tensors: Tensors) -> str | None:
        """Keep a step's inputs and return its name, if it is drawn; drop those that it takes the place of."""
        name = f"{clip}/{chunk}"
        with self._lock:
            gone = [] if self._reservoir is None else self._reservoir.offer(name, stratum_index(chunk))
            if gone is None:
                return None
            for other in gone:
                self._free.append(self._numbers.pop(other))
                self._rows.pop(other, None)  # none yet of a clip that is being heard
            self._numbers[name] = self._free.pop() if self._free else len(self._numbers)
            # Raw, for an archive of 36 small arrays takes longer to write than the step to run.
            with self._file(name).open("wb") as file:
                for spec in self.inputs:
                    file.write(np.ascontiguousarray(tensors[spec.name], spec.dtype).data)
        return name

    def add_rows(self, name: str, rows: Rows) -> None:
        """Keep what came of a step, unless the step itself has been dropped."""
        with self._lock:
            if name in self._numbers:
                self._rows[name] = rows

    def __contains__(self, name: str) -> bool:
        """Tell whether a step is still kept."""
        return name in self._numbers

    def read(self, name: str) -> Tensors:
        """Return a step's inputs as they were offered."""
        data, start, found = self._file(name).read_bytes(), 0, {}
        for spec in self.inputs:
            count = int(np.prod(spec.shape))
            found[spec.name] = np.frombuffer(data, spec.dtype, count, start).reshape(spec.shape)
            start += found[spec.name].nbytes
        return found

    def rows(self, name: str) -> Rows:
        """Return what came of a step."""
        return self._rows[name]

    def chosen(self) -> list[str]:
        """Return the steps drawn, in an order that their names decide and not who was heard first."""
        return sorted(self._numbers) if self._reservoir is None else self._reservoir.chosen()

    def _file(self, name: str) -> Path:
        return self.folder / f"{self._numbers[name]:06d}"


def strata(names: Sequence[str]) -> Counter[int]:
    """Count steps by how far into their streams they are."""
    return Counter(stratum_index(int(name.rpartition("/")[2])) for name in names)
