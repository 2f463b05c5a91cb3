"""Scores of streams: errors by position in the stream, and the time per chunk."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, Field

STRATA = ("first", "second", "3rd to 4th", "5th to 8th", "9th to 16th", "later")


def stratum_index(chunk: int) -> int:
    """Return the index in STRATA of a chunk: chunks 0, 1, 2-3, 4-7, 8-15, 16 and later."""
    return min(len(STRATA) - 1, chunk.bit_length())


def word_chunks(path: Sequence[int], rows_a_chunk: int, words: Callable[[list[int]], Sequence[str]]) -> list[int]:
    """Return for each word of a hypothesis the chunk after which the text first has that many words.

    path: the token of each frame, 0 for blank; words: the scored words of some tokens.
    """
    tokens: list[int] = []
    found: list[int] = []
    for chunk, start in enumerate(range(0, len(path), rows_a_chunk)):
        new = [token for token in path[start : start + rows_a_chunk] if token]
        if new:
            tokens += new
            count = len(words(tokens))
            del found[count:]  # the normaliser joins two words to one number
            found += [chunk] * (count - len(found))
    return found


class ChunkTimes(BaseModel, frozen=True):
    """Time per chunk, encoder and search together, against the length of a chunk."""

    p50_ms: float
    p95_ms: float
    lasts_ms: float = Field(description="speech in a chunk")
    late: int = Field(description="chunks that took longer than their speech")
    chunks: int

    @property
    def real_time(self) -> bool:
        """Tell whether the board keeps up with speech: 95 of 100 chunks end before the next begins."""
        return self.p95_ms <= self.lasts_ms


def chunk_times(taken_ms: Sequence[float], lasts_s: float) -> ChunkTimes:
    """Summarise the times of all chunks of all clips; there is at least one."""
    p50, p95 = np.percentile(taken_ms, [50, 95])
    late = sum(each > 1000 * lasts_s for each in taken_ms)
    return ChunkTimes(
        p50_ms=round(float(p50), 3),
        p95_ms=round(float(p95), 3),
        lasts_ms=1000 * lasts_s,
        late=late,
        chunks=len(taken_ms),
    )
