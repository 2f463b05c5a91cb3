"""Encoder outputs as the files that other tools read: enc_000000.bin and on, raw float32."""

from collections.abc import Sequence
from pathlib import Path

from nightjar.dataset.reader import Dataset
from nightjar.files import storage_errors
from nightjar.progress import tick


def write_dumps(dataset: Dataset, order: Sequence[str], folder: Path) -> int:
    """Write every clip's encoder output, numbered from 0 by its position in `order`; return the number of files.

    order: clip ids in the order of the manifest's lines; without it a file has its clip's id. A file is
    (n_audio_ctx, d) little-endian float32 without a header, as `calibrate import-dumps` reads it. A clip that the
    dataset lacks has no file, and the others keep their numbers. Equal files are not written again. Raises StoreBroken
    when the disk is full.
    """
    tensor = next(iter(dataset.metadata.tensors))
    numbers = {name: f"{number:06d}" for number, name in enumerate(order)}
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
        for done, sample in enumerate(dataset, 1):
            path = folder / f"enc_{numbers.get(sample.id, sample.id)}.bin"
            data = sample.tensors[tensor].astype("<f4").tobytes()
            if not path.exists() or path.stat().st_size != len(data) or path.read_bytes() != data:
                part = path.with_suffix(".part")
                part.write_bytes(data)
                part.rename(path)
            tick(done, len(dataset))
    return len(dataset)
