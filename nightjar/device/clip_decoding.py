"""What the decode loops of all models share: the clip, watched logits, and seconds per part; numpy only."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class EncodedClip(NamedTuple):
    """One clip to transcribe: the encoder's outputs, and the tokens to measure agreement with, if any.

    forced: Whisper's tokens, or a stream's token of each row, 0 for none. watch: the ids whose logits are recorded at
    each step along `forced`, or along the clip's own tokens where it is None; empty for the highest logits.
    """

    name: str
    encoded: dict[str, Any]
    forced: list[int] | None = None
    watch: list[list[int]] | None = None


class WatchedLogits:
    """Record ids, logits and norm (log of the sum of all exp) of some tokens per step."""

    def __init__(self, ids: list[list[int]], highest: int) -> None:
        """Watch these ids at each step, or the `highest` logits of each where `ids` is empty."""
        self.ids, self.highest = ids, highest
        self.rows: dict[str, list[Any]] = {"ids": [], "logits": [], "norm": []}

    def record(self, logits: Any) -> None:
        """Record a step: logits (vocabulary,)."""
        values = logits.astype(np.float64)
        step = len(self.rows["ids"])
        if self.ids:
            ids = self.ids[step] if step < len(self.ids) else []
        else:
            ids = np.argpartition(values, -self.highest)[-self.highest :].tolist()
        self.rows["ids"].append(ids)
        self.rows["logits"].append([round(float(values[i]), 5) for i in ids])
        self.rows["norm"].append(round(float(values.max() + np.log(np.exp(values - values.max()).sum())), 5))


class Stopwatch:
    """Measure the seconds since its start, in total and per part by a runner's clock."""

    def __init__(self, clock: Mapping[str, float]) -> None:
        self.clock, self.before, self.began = clock, dict(clock), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Return the seconds by part, without parts that did not run, and as `total`."""
        spent = {part: seconds - self.before.get(part, 0.0) for part, seconds in self.clock.items()}
        return {part: s for part, s in spent.items() if s} | {"total": time.perf_counter() - self.began}
