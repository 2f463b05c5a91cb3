"""Draw a fixed number of steps from a stream of unknown length, independent of their order."""

import heapq
from collections import Counter

from nightjar.speech.manifest import rank


class Reservoir:
    """Draw `size` steps uniformly, and at least `least` of each stratum that has so many.

    A step's rank is a hash of its name and the seed, and the lowest ranks are drawn: the same steps in any order, and
    steps that are not drawn take no memory (bottom-k sampling, Cohen and Kaplan 2007).
    """

    def __init__(self, size: int, least: int, seed: int) -> None:
        self.size, self.least, self.seed = size, least, seed
        self._all: list[tuple[int, str]] = []  # heaps with the highest rank first, hence the signs
        self._strata: dict[int, list[tuple[int, str]]] = {}
        self._heaps = Counter[str]()  # how many heaps a step is in

    def offer(self, name: str, stratum: int) -> list[str] | None:
        """Return the steps that this one displaces, None where it is not drawn itself."""
        entry, popped = (-self._rank(name), name), []
        for heap, most in ((self._all, self.size), (self._strata.setdefault(stratum, []), self.least)):
            heapq.heappush(heap, entry)
            self._heaps[name] += 1
            if len(heap) > most:
                popped.append(heapq.heappop(heap)[1])
                self._heaps[popped[-1]] -= 1
        displaced = {other for other in popped if not self._heaps[other]}
        for other in displaced:
            del self._heaps[other]
        return None if name in displaced else sorted(displaced)

    def chosen(self) -> list[str]:
        """Return the steps drawn, `size` at most: first the least of each stratum, then the lowest ranks."""
        owed = {name for heap in self._strata.values() for _, name in heap}
        rest = {name for _, name in self._all} - owed
        return sorted([*sorted(owed, key=self._rank), *sorted(rest, key=self._rank)][: self.size], key=self._rank)

    def _rank(self, name: str) -> int:
        return int(rank(self.seed, name)[:16], 16)
