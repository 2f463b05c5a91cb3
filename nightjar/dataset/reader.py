"""Encoder outputs of many clips: shards of float16 with checksums and an index (docs/files.md), read.

for sample in open_dataset(Path("hidden")):
    sample.id, sample.tensors["hidden"]  # a memory map, (n_audio_ctx, d) float16
"""

import hashlib
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from nightjar.errors import StoreBroken
from nightjar.files import digest, digest_file, storage_errors
from nightjar.progress import tick

INDEX = "dataset.json"
REMEDY = "run the same `nightjar harvest` again, it recomputes what is missing or altered"


class HarvestedClip(NamedTuple):
    """Encoder outputs of one clip: float16 tensors without the batch axis; wave: sha256 of its int16 samples.

    The tensors of a clip that is read from a dataset are read-only memory maps.
    """

    id: str
    audio_s: float
    wave: str
    tensors: dict[str, np.ndarray]


class ShardEntry(BaseModel, frozen=True):
    """One clip in a shard: its tensors lie at its position in the record; tensors: their sha256."""

    id: str
    audio_s: float
    wave: str
    tensors: dict[str, str]


class ShardRecord(BaseModel, frozen=True):
    """The clips of a finished shard, in order; dataset: sha256 of the index before it lists shards."""

    dataset: str
    clips: list[ShardEntry]


class Index(BaseModel, frozen=True):
    """The description of a dataset; `shards` (sha256 of each record) are listed once it is finished."""

    format: Literal[1] = 1
    made_from: dict[str, Any]  # binary, target, tier, board facts, model and recipe, speech
    tensors: dict[str, tuple[int, ...]]
    clips: int
    shard_clips: int
    skipped: tuple[str, ...] = ()  # longer than the window
    shards: tuple[str, ...] = ()
    sha256: str = ""  # of all of the above

    def with_shards(self, shards: Sequence[str]) -> "Index":
        """Return a copy with these shards and its own checksum."""
        found = self.model_copy(update={"shards": tuple(shards), "sha256": ""})
        return found.model_copy(update={"sha256": digest(found.model_dump(mode="json", exclude={"sha256"}))})

    def sizes(self) -> list[int]:
        """Return the number of clips of each shard."""
        return [min(self.shard_clips, self.clips - start) for start in range(0, self.clips, self.shard_clips)]


class ShardFile:
    """One tensor of a shard: an .npy file `(clips, *shape)` of float16, read and written clip by clip."""

    def __init__(self, folder: Path, number: int, tensor: str, clips: int, shape: tuple[int, ...]) -> None:
        self.path = shard_file(folder, number, f"{tensor}.npy")
        header = io.BytesIO()
        layout = {"descr": "<f2", "fortran_order": False, "shape": (clips, *shape)}
        np.lib.format.write_array_header_1_0(header, layout)
        self._header = header.getvalue()
        self._clip_bytes = 2 * math.prod(shape)
        self.size = len(self._header) + clips * self._clip_bytes
        self._fd = -1

    def open(self, flags: int) -> bool:
        """Open the file, when writable with the right size and header; return whether it had these before."""
        if self._fd >= 0:
            return True
        self._fd = os.open(self.path, flags, 0o644)
        if os.fstat(self._fd).st_size == self.size and os.pread(self._fd, len(self._header), 0) == self._header:
            return True
        if flags & os.O_RDWR:
            os.ftruncate(self._fd, self.size)
            os.pwrite(self._fd, self._header, 0)
        return False

    def write(self, slot: int, tensor: np.ndarray) -> str:
        """Write one clip's tensor; return its sha256."""
        data = np.ascontiguousarray(tensor, "<f2").tobytes()
        assert len(data) == self._clip_bytes, (self.path, tensor.shape)
        view, at = memoryview(data), self._offset(slot)
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written
        return hashlib.sha256(data).hexdigest()

    def sha256(self, slot: int) -> str:
        return hashlib.sha256(os.pread(self._fd, self._clip_bytes, self._offset(slot))).hexdigest()

    def _offset(self, slot: int) -> int:
        return len(self._header) + slot * self._clip_bytes

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def shard_file(folder: Path, number: int, kind: str) -> Path:
    """Return the path of a shard's record (`json`), or of one of its tensors (`hidden.npy`)."""
    return folder / f"shard-{number:05d}.{kind}"


class Dataset(Sequence[HarvestedClip]):
    """Read a finished dataset; tensors are loaded when they are used."""

    def __init__(self, folder: Path, index: Index, records: Sequence[ShardRecord]) -> None:
        self.folder, self.metadata = folder, index
        self._entries = [entry for record in records for entry in record.clips]
        self.ids = [entry.id for entry in self._entries]
        self._mapped: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        entry = self._entries[at]
        number, slot = divmod(at % len(self), self.metadata.shard_clips)
        if self._mapped[0] != number:  # one shard at a time, or all that was read would count as this process's memory
            paths = {name: shard_file(self.folder, number, f"{name}.npy") for name in self.metadata.tensors}
            self._mapped = (number, {name: np.load(path, mmap_mode="r") for name, path in paths.items()})
        tensors = {tensor: values[slot] for tensor, values in self._mapped[1].items()}
        return HarvestedClip(entry.id, entry.audio_s, entry.wave, tensors)


def open_dataset(folder: Path, verify: bool = True) -> Dataset:
    """Open a finished dataset; raises StoreBroken with the clip or file that is missing or altered.

    verify: hash every tensor, at the speed of the disk; without, only the index, records and file sizes are checked.
    """
    folder = Path(folder)
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
        if index.with_shards(index.shards) != index:
            raise ValueError("wrong checksum")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", "it was altered")
        raise StoreBroken(f"{folder / INDEX} cannot be read ({reason}): {REMEDY}") from error
    if len(index.shards) != len(index.sizes()):
        raise StoreBroken(f"{folder} is not finished: {REMEDY}")
    records = []
    for number, (expected, size) in enumerate(zip(index.shards, index.sizes(), strict=True)):
        path = shard_file(folder, number, "json")
        if not path.exists() or digest_file(path) != expected:
            raise StoreBroken(f"{path} is missing or was altered: {REMEDY}")
        records.append(record := ShardRecord.model_validate_json(path.read_bytes()))
        for tensor, shape in index.tensors.items():
            _check_file(ShardFile(folder, number, tensor, size, shape), tensor, record, verify)
    return Dataset(folder, index, records)


def _check_file(file: ShardFile, tensor: str, record: ShardRecord, verify: bool) -> None:
    try:
        if not file.open(os.O_RDONLY):
            raise StoreBroken(f"{file.path} was truncated, or its header altered: {REMEDY}")
        for slot, entry in enumerate(record.clips if verify else ()):
            if file.sha256(slot) != entry.tensors[tensor]:
                raise StoreBroken(f"{file.path}: the tensor of clip {entry.id} was altered: {REMEDY}")
    except OSError as error:
        raise StoreBroken(f"{file.path} cannot be read ({error.strerror}): {REMEDY}") from error
    finally:
        file.close()


def write_dumps(dataset: Dataset, order: Sequence[str], folder: Path) -> int:
    """Write each clip's encoder output as enc_000000.bin and on, as other tools read it; return the number of files.

    order: clip ids in the order of the manifest's lines, which number the files; a clip without a number has a file of
    its id. A file is (n_audio_ctx, d) little-endian float32 without a header, as `calibrate import-dumps` reads it.
    Equal files are not written again. Raises StoreBroken when the disk is full.
    """
    tensor = next(iter(dataset.metadata.tensors))
    numbers = {name: f"{number:06d}" for number, name in enumerate(order)}
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
        for done, sample in enumerate(dataset, 1):
            path = folder / f"enc_{numbers.get(sample.id, sample.id)}.bin"
            data = sample.tensors[tensor].astype("<f4").tobytes()
            if not path.exists() or path.read_bytes() != data:
                part = path.with_suffix(".part")
                part.write_bytes(data)
                part.rename(path)
            tick(done, len(dataset))
    return len(dataset)
