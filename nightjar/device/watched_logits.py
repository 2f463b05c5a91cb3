"""The logits of some tokens at every step, to compare a binary with float graphs; numpy only."""

from typing import Any

import numpy as np


class WatchedLogits:
    """Record ids, logits and norm (log of the sum of all exp) per step."""

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
