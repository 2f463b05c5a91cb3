"""A calibration set: real inputs of every part, each array stored once.

`calibration.json` says, per part, what the inputs are and which files make each sample (docs/files.md).
A sample may take the first rows of a longer array, so that a decoder's KV cache is stored once per clip, not per step.
"""

import functools
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator

from nightjar.errors import BadInput
from nightjar.graphs.onnx_session import Tensors as Tensors
from nightjar.graphs.tensor_spec import TensorSpec

log = logging.getLogger(__name__)

INDEX = "calibration.json"
FEW_SAMPLES = 100  # below it ranges depend on which samples were drawn
AGAIN = "run the same command with --refresh calibrate"


class ArrayRef(BaseModel, frozen=True):
    """A stored array, whole or its first `rows` of axis 1, zero-padded to the input's shape."""

    file: str
    rows: int | None = Field(default=None, ge=0)

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, file: str) -> str:
        if file in ("", ".", "..") or "/" in file or "\\" in file:
            raise ValueError(f"{file!r} is not a plain file name inside the calibration folder")
        return file


class PartSamples(BaseModel):
    """The inputs of a part in graph order, and its samples."""

    inputs: list[TensorSpec]
    samples: list[dict[str, ArrayRef]] = []


class CalibrationIndex(BaseModel):
    """The content of calibration.json."""

    seed: int
    warnings: list[str] = []
    parts: dict[str, PartSamples]
    streams: list[str] = []  # files of whole streams' features, for errors that grow from step to step
    coverage: dict[str, Any] = {}


class RunningHistogram:
    """Collect minimum, maximum and approximate percentiles of a stream of arrays in constant memory.

    The histogram spans [-reach, reach] and doubles its reach by merging neighbouring bins, so a late outlier costs
    resolution and no second pass. It counts about `VIEW` elements of an array, evenly spread; min and max are exact.
    """

    BINS = 8192
    VIEW = 200_000

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        self._reach = 2.0**-20
        self._counts = np.zeros(self.BINS, np.int64)

    def add(self, array: np.ndarray) -> None:
        """Count an array of any shape and real dtype; NaN and infinity raise BadInput."""
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if not np.isfinite([low, high]).all():
            raise BadInput(
                "calibration values contain NaN or infinity; ranges need finite values: check the"
                f" float graphs and the clip, then {AGAIN}"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        # Reaches are powers of two: bins of any two nest, so the order of arrays does not matter.
        while max(-low, high) > self._reach:
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(merged, self.BINS // 4)
            self._reach *= 2
        # An odd step reaches all channels instead of the same ones in every row.
        flat = array.reshape(-1)[:: max(1, array.size // self.VIEW) | 1].astype(np.float64)
        bins = ((flat / self._reach + 1) * (self.BINS / 2)).astype(np.int64)
        np.clip(bins, 0, self.BINS - 1, out=bins)
        self._counts += np.bincount(bins, minlength=self.BINS)

    def percentile(self, percent: float) -> float:
        """Return the value below which `percent` of the elements lie, within one bin and [min, max]."""
        if not self._counts.any():
            return 0.0
        cumulative = np.cumsum(self._counts)
        index = int(np.searchsorted(cumulative, percent / 100 * cumulative[-1]))
        # The outer edge: a clipped range includes the bin it ends in.
        edge = index if percent < 50 else index + 1
        value = (edge * 2 / self.BINS - 1) * self._reach
        return float(min(max(value, self.low), self.high))

    def summary(self) -> dict[str, float]:
        """Return min, max, p0.1 and p99.9, rounded to 6 significant digits."""
        ends = {"min": self.low, "max": self.high, "p0.1": self.percentile(0.1), "p99.9": self.percentile(99.9)}
        return {name: float(f"{value:.6g}") for name, value in ends.items()} if self._counts.any() else {}


class CalibrationWriter:
    """Write a calibration folder array by array; only names and ranges stay in memory. Threads may store at once.

    `close` writes calibration.json last: a folder without it is unfinished and cannot be opened.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Sequence[Any]], seed: int = 0) -> None:
        """parts: the inputs of each, TensorSpec or as model.json has them."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._lock, self._stored = folder, threading.Lock(), set[str]()
        contents = {part: {"inputs": inputs} for part, inputs in parts.items()}
        self._index = CalibrationIndex.model_validate({"seed": seed, "parts": contents})
        self._spreads = {p: {i.name: RunningHistogram() for i in e.inputs} for p, e in self._index.parts.items()}

    def store(self, part: str, name: str, file: str, array: np.ndarray, rows: bool = False) -> ArrayRef:
        """Store an array of `part`'s input `name` as `file` and return a reference to it.

        rows: axis 1 may be shorter than the input's. Raises BadInput for a wrong shape, an unknown input and a file
        that is stored already.
        """
        spec = next((i for i in self._index.parts[part].inputs if i.name == name), None)
        if spec is None:
            have = ", ".join(i.name for i in self._index.parts[part].inputs)
            raise BadInput(f"part '{part}' has no input '{name}'; it has {have}; give it one of these")
        if file in self._stored:
            raise BadInput(f"'{file}' is stored already; give each array a name of its own")
        array = np.ascontiguousarray(array, dtype=spec.dtype)
        _check_shape(array, spec, f"part '{part}', file '{file}'", rows)
        with self._lock:
            self._spreads[part][name].add(array)
            self._stored.add(file)
        np.save(self._folder / file, array, allow_pickle=False)
        return ArrayRef(file=file)

    def add(self, part: str, sample: Mapping[str, ArrayRef]) -> None:
        """Append one sample to a part; it must name every input of the part."""
        entry = self._index.parts[part]
        _check_names(sample, entry, f"sample {len(entry.samples)} of part '{part}'")
        entry.samples.append({i.name: sample[i.name] for i in entry.inputs})

    def add_stream(self, features: np.ndarray) -> None:
        """Store the features of a whole stream, (chunks, …) float32."""
        file = f"stream_{len(self._index.streams):06d}.npy"
        np.save(self._folder / file, np.ascontiguousarray(features, np.float32), allow_pickle=False)
        self._index.streams.append(file)

    def count(self, part: str) -> int:
        """Return the number of samples added to a part so far."""
        return len(self._index.parts[part].samples)

    def close(self, coverage: Mapping[str, Any], warnings: Sequence[str] = ()) -> None:
        """Write calibration.json with this coverage and the ranges per part and input; log the warnings."""
        ranges = {part: {n: spread.summary() for n, spread in each.items()} for part, each in self._spreads.items()}
        self._index.coverage = {**coverage, "ranges": ranges}
        self._index.warnings = list(warnings)
        for warning in warnings:
            log.warning("%s", warning)
        text = self._index.model_dump_json(indent=1, exclude_none=True)
        (self._folder / INDEX).write_text(text + "\n", encoding="utf-8")


class CalibrationSet:
    """Read a calibration folder, one sample in memory at a time."""

    def __init__(self, folder: Path, index: CalibrationIndex) -> None:
        self.folder = folder
        self.index = index

    @classmethod
    def open(cls, folder: Path) -> "CalibrationSet":
        """Open a folder; BadInput where calibration.json is missing or malformed."""
        path = folder / INDEX
        try:
            index = CalibrationIndex.model_validate_json(path.read_bytes())
        except FileNotFoundError as exc:
            raise BadInput(f"no {INDEX} in {folder}: not a calibration set, or one cut short; {AGAIN}") from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise BadInput(f"{path} is malformed, {place}: {first['msg']}; {AGAIN}") from exc
        return cls(folder, index)

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of the parts it has samples for."""
        return tuple(self.index.parts)

    def inputs(self, part: str) -> tuple[TensorSpec, ...]:
        """Return a part's inputs in graph order."""
        return tuple(self._part(part).inputs)

    def count(self, part: str) -> int:
        """Return the number of samples of a part."""
        return len(self._part(part).samples)

    def samples(self, part: str, most: int | None = None, numbers: Iterable[int] | None = None) -> Iterator[Tensors]:
        """Yield a part's samples, every input by name in graph order, in its full shape and dtype.

        most: yield at most so many, evenly from all, as a decoder's samples are in order of their clips. numbers: yield
        these. Raises BadInput for a missing input, file or row, and for a wrong shape. Arrays that samples share are
        read-only.
        """
        total = self.count(part)
        taken = min(most or total, total)
        spread = (n * total // taken for n in range(taken))
        load = functools.lru_cache(len(self.inputs(part)))(self._load)
        for number in spread if numbers is None else numbers:
            sample, where = self._sample(part, number)
            yield {s.name: _materialise(load(sample[s.name].file), sample[s.name], s, where) for s in self.inputs(part)}

    def streams(self) -> list[np.ndarray]:
        """Return the features of the stored streams, (chunks, …) float32 each; empty for a model without streams."""
        return [self._load(file) for file in self.index.streams]

    def write_dataset(self, part: str, folder: Path | None = None) -> Path:
        """Write dataset.txt, the sample list of vendor toolkits, and return its path.

        One sample per line, absolute paths in graph order with one space between them; rows of a longer array are
        written out beside the list. folder: by default `dataset/<part>/` of the set, which is no part of its content.
        Raises BadInput for a path with white space: the format has no quoting.
        """
        store = self.folder.resolve()
        out = (folder or store / "dataset" / part).resolve()
        for folder in (store, out):
            if str(folder).split() != [str(folder)]:
                raise BadInput(
                    f"'{folder}' has white space in it, and dataset.txt cannot quote a path;"
                    " put the artifact store or the dataset folder somewhere without"
                )
        out.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(self.count(part)):
            sample, where = self._sample(part, number)
            paths = []
            for spec in self.inputs(part):
                ref, path = sample[spec.name], store / sample[spec.name].file
                if ref.rows is not None:
                    path = out / f"{spec.name}_{number:06d}.npy"
                    np.save(path, _materialise(self._load(ref.file), ref, spec, where), allow_pickle=False)
                elif not path.is_file():
                    raise BadInput(f"{where}: '{ref.file}' is missing; {AGAIN}")
                paths.append(str(path))
            lines.append(" ".join(paths) + "\n")
        (out / "dataset.txt").write_text("".join(lines), encoding="utf-8")
        return out / "dataset.txt"

    def _part(self, part: str) -> PartSamples:
        if part not in self.index.parts:
            raise BadInput(
                f"{self.folder} has no samples for part '{part}'; it has {', '.join(self.parts)},"
                f" and is of another recipe than the graphs: {AGAIN}"
            )
        return self.index.parts[part]

    def _sample(self, part: str, number: int) -> tuple[dict[str, ArrayRef], str]:
        """Return a sample, and its place for messages; BadInput where its inputs are not the part's."""
        entry, where = self._part(part), f"sample {number} of part '{part}' in {self.folder}"
        _check_names(entry.samples[number], entry, where)
        return entry.samples[number], where

    def _load(self, file: str) -> np.ndarray:
        try:
            array: np.ndarray = np.load(self.folder / file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise BadInput(f"cannot read '{file}' of {self.folder} ({exc}); {AGAIN}") from exc
        array.flags.writeable = False
        return array


def few_samples(counts: Mapping[str, int]) -> list[str]:
    """Return a warning where parts have fewer than FEW_SAMPLES samples."""
    few = ", ".join(f"{part} {count}" for part, count in counts.items() if count < FEW_SAMPLES)
    warning = (
        f"few calibration samples ({few}; {FEW_SAMPLES} or more are wanted): the int8 ranges may miss what other speech"
        " needs; give more clips or a higher --calibration-samples"
    )
    return [warning] if few else []


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Take at most `most` items, evenly from first to last."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[place] for place in places]


def load_harvested(path: Path, clip_id: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read a clip's harvested encoder output as float32; BadInput where there is none, or one of another shape."""
    again = "run the same command with --refresh harvest"
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise BadInput(f"no hidden states of clip '{clip_id}': {exc}; {again}") from exc
    if array.shape not in (shape, (1, *shape)):
        raise BadInput(f"{path}: shape {array.shape}, but these graphs give {shape}; {again}")
    return array.astype(np.float32).reshape(shape)


def _materialise(array: np.ndarray, ref: ArrayRef, spec: TensorSpec, where: str) -> np.ndarray:
    where = f"{where}, file '{ref.file}'"
    if array.dtype != np.dtype(spec.dtype):
        raise BadInput(f"{where}: dtype {array.dtype}, but input '{spec.name}' is {spec.dtype}; {AGAIN}")
    _check_shape(array, spec, where, ref.rows is not None)
    if ref.rows is None:
        return array
    if ref.rows > array.shape[1]:
        raise BadInput(f"{where}: {ref.rows} rows wanted, {array.shape[1]} stored; {AGAIN}")
    full = np.zeros(spec.shape, array.dtype)
    full[:, : ref.rows] = array[:, : ref.rows]
    return full


def _check_shape(array: np.ndarray, spec: TensorSpec, where: str, rows: bool) -> None:
    wanted = list(spec.shape)
    if rows and array.ndim == len(wanted) > 1:
        wanted[1] = min(wanted[1], array.shape[1])
    if list(array.shape) != wanted:
        raise BadInput(f"{where}: shape {array.shape}, but input '{spec.name}' is {spec.shape}; {AGAIN}")


def _check_names(sample: Mapping[str, ArrayRef], part: PartSamples, where: str) -> None:
    wanted = {i.name for i in part.inputs}
    if set(sample) != wanted:
        missing, extra = sorted(wanted - set(sample)), sorted(set(sample) - wanted)
        raise BadInput(f"{where}: missing inputs {missing}, unknown inputs {extra}; {AGAIN}")
