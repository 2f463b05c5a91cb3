"""What a stream's evaluation has beside a clip's: errors by chunk, and the time that chunks take."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, Field

STRATA = ("first", "second", "3rd to 4th", "5th to 8th", "9th to 16th", "later")


def stratum_index(chunk: int) -> int:
    """Sort chunks by how far into a stream they are, as STRATA has them: 0, 1, 2-3, 4-7, 8-15, 16 and later."""
    return min(len(STRATA) - 1, chunk.bit_length())


def word_chunks(path: Sequence[int], rows_a_chunk: int, words: Callable[[list[int]], Sequence[str]]) -> list[int]:
    """Say behind which chunk each word of a hypothesis was there: its text then first had so many words.

    path: the token of each row, 0 for none; words: what is scored of some tokens.
    """
    tokens: list[int] = []
    found: list[int] = []
    for chunk, start in enumerate(range(0, len(path), rows_a_chunk)):
        new = [token for token in path[start : start + rows_a_chunk] if token]
        if new:
            tokens += new
            count = len(words(tokens))
            del found[count:]  # a normaliser makes one number of two words
            found += [chunk] * (count - len(found))
    return found


class ChunkTimes(BaseModel, frozen=True):
    """How long chunks take, encoder and search together, against how long they last."""

    p50_ms: float
    p95_ms: float
    lasts_ms: float = Field(description="of speech, in a chunk")
    late: int = Field(description="chunks that took longer than they last")
    chunks: int

    @property
    def real_time(self) -> bool:
        """Tell whether the board keeps up with speech: 95 of 100 chunks are done before the next is there."""
        return self.p95_ms <= self.lasts_ms


def chunk_times(taken_ms: Sequence[float], lasts_s: float) -> ChunkTimes:
    """Sum up the times of all chunks of all clips, at least one."""
    p50, p95 = np.percentile(taken_ms, [50, 95])
    late = sum(each > 1000 * lasts_s for each in taken_ms)
    return ChunkTimes(
        p50_ms=round(float(p50), 3),
        p95_ms=round(float(p95), 3),
        lasts_ms=1000 * lasts_s,
        late=late,
        chunks=len(taken_ms),
    )
