"""Drift: whether the error of a binary's states and outputs against the float graphs' grows along a stream.

Both process the same speech, each from its own states. An error that grows from the first quarter of a stream to the
last keeps growing; a test set of short clips does not show it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

CLEAN_DB = 40.0  # a higher SNR does not change the text: float16 alone reaches it


class SnrCurve(BaseModel, frozen=True):
    """The signal-to-noise ratio of one tensor along a stream, in dB; 200 at most."""

    snr_db: tuple[float, ...] = Field(description="of each measured chunk")
    first_db: float = Field(description="over the first quarter of the stream")
    last_db: float = Field(description="over the last quarter")


class Drift(BaseModel, frozen=True):
    """SNR of a binary's tensors along one stream."""

    seconds: float
    tier: str
    count: int = Field(description="chunks of the stream")
    chunks: tuple[int, ...] = Field(description="those measured")
    output: str = Field(description="the output that the search reads")
    courses: dict[str, SnrCurve] = Field(description="by tensor: the output, then every state")
    agree: tuple[tuple[int, int], ...] = Field(description="by quarter: frames with equal tokens, frames with a token")

    @property
    def grown_db(self) -> float:
        """Return the growth of the error of the searched output, in dB; SNRs above CLEAN_DB count as CLEAN_DB."""
        curve = self.courses[self.output]
        return max(0.0, min(curve.first_db, CLEAN_DB) - min(curve.last_db, CLEAN_DB))


def read_drift(folder: Path) -> Drift:
    """Read what the drift stage wrote."""
    return Drift.model_validate_json((folder / "drift.json").read_text(encoding="utf-8"))


def compare_streams(
    float_stream: Path,
    binary_stream: Path,
    names: Sequence[str],
    *,
    count: int,
    chunks: Sequence[int],
    rows_a_chunk: int,
) -> dict[str, SnrCurve]:
    """Compare the harvested tensors of a stream; the paths are `<folder>/<stream>` without suffix.

    The first of `names` has rows (count · rows_a_chunk, …), the others one row per measured chunk. Memory is mapped.
    """
    curves = {}
    for number, name in enumerate(names):
        arrays = [np.load(f"{path}.{name}.npy", mmap_mode="r") for path in (float_stream, binary_stream)]
        energies = np.empty((len(chunks), 2))  # of the float tensor and of its difference to the binary's
        for place, chunk in enumerate(chunks):
            at = slice(chunk * rows_a_chunk, (chunk + 1) * rows_a_chunk) if number == 0 else place
            left, right = (np.asarray(array[at], np.float64) for array in arrays)
            energies[place] = (left**2).sum(), ((left - right) ** 2).sum()
        curves[name] = SnrCurve(
            snr_db=tuple(map(_decibels, energies)),
            first_db=_decibels(energies[4 * np.asarray(chunks) < count].sum(axis=0)),
            last_db=_decibels(energies[4 * np.asarray(chunks) >= 3 * count].sum(axis=0)),
        )
    return curves


def agreement(float_tokens: Sequence[int], binary_tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Count by quarter the tokens equal in the same frame, and the frames where either has one; 0 is blank."""
    found = []
    for quarter in range(4):
        at = slice(len(float_tokens) * quarter // 4, len(float_tokens) * (quarter + 1) // 4)
        pairs = list(zip(float_tokens[at], binary_tokens[at], strict=True))
        found.append((sum(a == b != 0 for a, b in pairs), sum(a != 0 or b != 0 for a, b in pairs)))
    return tuple(found)


def worst_by_kind(courses: Mapping[str, SnrCurve]) -> dict[str, tuple[str, SnrCurve]]:
    """Return of each kind of state (`new_cached_key_3` is a `cached_key`) the one with the lowest SNR at the end."""
    worst: dict[str, tuple[str, SnrCurve]] = {}
    for name, curve in courses.items():
        kind = name.removeprefix("new_").rstrip("0123456789").rstrip("_")
        if kind not in worst or curve.last_db < worst[kind][1].last_db:
            worst[kind] = (name, curve)
    return worst


def _decibels(energies: NDArray[np.float64]) -> float:
    signal, noise = np.maximum(energies, 1e-30)
    return round(float(min(200.0, 10 * np.log10(signal / noise))), 2)
