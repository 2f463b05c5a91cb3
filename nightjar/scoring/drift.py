"""Whether a stream's error grows: a binary's states and outputs against the float graphs', chunk by chunk.

Both hear the same speech, each going on from its own states. What grows from the first quarter of a stream to the last
will grow on: that is drift, and no test set of short clips shows it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

CLEAN_DB = 40.0  # above it nothing that is heard depends on the error: float16 alone is there


class SnrCurve(BaseModel, frozen=True):
    """One tensor's signal-to-noise ratio over a stream, in dB; 200 at most."""

    snr_db: tuple[float, ...] = Field(description="of each chunk looked at")
    first_db: float = Field(description="over the first quarter of the stream")
    last_db: float = Field(description="over the last quarter")


class Drift(BaseModel, frozen=True):
    """What became of a stream."""

    seconds: float
    tier: str
    count: int = Field(description="chunks of the stream")
    chunks: tuple[int, ...] = Field(description="those looked at")
    output: str = Field(description="the output that is searched")
    courses: dict[str, SnrCurve] = Field(description="by tensor: the output, then every state")
    agree: tuple[tuple[int, int], ...] = Field(description="by quarter: tokens in the same row as float's, of both's")

    @property
    def grown_db(self) -> float:
        """Say by how much the error of the searched output grew; what lies above CLEAN_DB counts as CLEAN_DB."""
        course = self.courses[self.output]
        return max(0.0, min(course.first_db, CLEAN_DB) - min(course.last_db, CLEAN_DB))

    def worst_state(self) -> tuple[str, SnrCurve]:
        """Return the state that is furthest from float's in the last quarter."""
        states = [(name, course) for name, course in self.courses.items() if name != self.output]
        return min(states, key=lambda item: item[1].last_db)


def read_drift(folder: Path) -> Drift:
    """Read what the drift stage wrote."""
    return Drift.model_validate_json((folder / "drift.json").read_text(encoding="utf-8"))


def compare_streams(
    expected: Path, obtained: Path, names: Sequence[str], *, count: int, chunks: Sequence[int], rows_a_chunk: int
) -> dict[str, SnrCurve]:
    """Hold one stream's harvested tensors against another's; expected, obtained: `<folder>/<stream>` without suffix.

    The first of `names` has rows (count · rows_a_chunk, …), the others a step per chunk looked at. Memory is mapped.
    """
    courses = {}
    for number, name in enumerate(names):
        wanted, got = (np.load(f"{path}.{name}.npy", mmap_mode="r") for path in (expected, obtained))
        energies = []
        for place, chunk in enumerate(chunks):
            at = slice(chunk * rows_a_chunk, (chunk + 1) * rows_a_chunk) if number == 0 else place
            left, right = (np.asarray(array[at], np.float64) for array in (wanted, got))
            energies.append((float((left**2).sum()), float(((left - right) ** 2).sum())))
        courses[name] = SnrCurve(
            snr_db=tuple(round(_decibels([pair]), 2) for pair in energies),
            first_db=round(_decibels([e for e, c in zip(energies, chunks, strict=True) if 4 * c < count]), 2),
            last_db=round(_decibels([e for e, c in zip(energies, chunks, strict=True) if 4 * c >= 3 * count]), 2),
        )
    return courses


def agreement(expected: Sequence[int], obtained: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Count by quarter the tokens that are the same in the same row, of those that either says there."""
    found = []
    for quarter in range(4):
        at = slice(len(expected) * quarter // 4, len(expected) * (quarter + 1) // 4)
        pairs = list(zip(expected[at], obtained[at], strict=True))
        found.append((sum(a == b != 0 for a, b in pairs), sum(a != 0 or b != 0 for a, b in pairs)))
    return tuple(found)


def worst_by_kind(courses: Mapping[str, SnrCurve]) -> dict[str, tuple[str, SnrCurve]]:
    """Return of each kind of state (`new_cached_key_3` is a `cached_key`) the one that ends furthest from float's."""
    worst: dict[str, tuple[str, SnrCurve]] = {}
    for name, course in courses.items():
        kind = name.removeprefix("new_").rstrip("0123456789").rstrip("_")
        if kind not in worst or course.last_db < worst[kind][1].last_db:
            worst[kind] = (name, course)
    return worst


def _decibels(energies: Sequence[tuple[float, float]]) -> float:
    signal, noise = (sum(each[i] for each in energies) for i in (0, 1))
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
