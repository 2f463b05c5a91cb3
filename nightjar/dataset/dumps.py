"""Encoder outputs as the files that other tools read: enc_000000.bin and on, raw float32."""

from collections.abc import Sequence
from pathlib import Path

from nightjar.dataset.reader import Dataset
from nightjar.files import storage_errors
from nightjar.progress import tick


def write_dumps(dataset: Dataset, order: Sequence[str], folder: Path) -> int:
    """Write every clip's encoder output, numbered from 0 by its place in `order`; return how many files there are.

    order: clip ids in the order of the speech list's lines; empty for speech without one, and a file is then called by
    its clip's id. A file is (n_audio_ctx, d) little-endian float32 without a
    header, what `calibrate import-dumps` takes; a clip that the dataset lacks, as it is too long or was not drawn, has
    none, and the others keep their numbers. What is there already in full is not written again. Raises StoreBroken when
    the disk is full.
    """
    tensor, shape = next(iter(dataset.about.tensors.items()))
    called = {name: f"{number:06d}" for number, name in enumerate(order)}
    size = 4 * shape[0] * shape[1]
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
        for done, sample in enumerate(dataset, 1):
            path = folder / f"enc_{called.get(sample.id, sample.id)}.bin"
            data = sample.tensors[tensor].astype("<f4").tobytes()
            if not path.exists() or path.stat().st_size != size or path.read_bytes() != data:
                part = path.with_suffix(".part")
                part.write_bytes(data)
                part.rename(path)
            tick(done, len(dataset))
    return len(dataset)
