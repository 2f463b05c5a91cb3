"""Draw steps from a stream of unknown length, a fixed number of them, whatever order they come in."""

import hashlib
import heapq
from collections.abc import Iterable


class Reservoir:
    """Keep `size` steps drawn uniformly, and beside them at least `least` of each stratum that has so many.

    A step's rank is a hash of its name and the seed, and the lowest are kept: so the same steps are drawn in any order,
    and nothing of those that are not kept is remembered (bottom-k sampling, Cohen and Kaplan 2007).
    """

    def __init__(self, size: int, least: int, seed: int) -> None:
        self.size, self.least, self.seed = size, least, seed
        self._all: list[tuple[int, str]] = []  # heaps with the highest rank first, hence the signs
        self._strata: dict[int, list[tuple[int, str]]] = {}
        self._stratum: dict[str, int] = {}

    def offer(self, name: str, stratum: int) -> list[str] | None:
        """Say which steps are no longer kept once this one is, None where it is not kept itself."""
        rank = self.rank(name)
        gone = [
            each
            for heap, most in ((self._all, self.size), (self._strata.setdefault(stratum, []), self.least))
            for each in _push(heap, most, -rank, name)
        ]
        self._stratum[name] = stratum
        left = {each for each in gone if not self._held(each)}
        for each in left:
            del self._stratum[each]
        return None if name in left else sorted(left)

    def chosen(self) -> list[str]:
        """Return the steps drawn, `size` at most: those that strata are owed, then the lowest ranks."""
        owed = {name for heap in self._strata.values() for _, name in heap}
        rest = sorted(({name for _, name in self._all} - owed), key=self.rank)
        owed_first = sorted(owed, key=self.rank)
        return sorted([*owed_first[: self.size], *rest[: max(0, self.size - len(owed))]], key=self.rank)

    def rank(self, name: str) -> int:
        """Return a step's place in an order that the seed and its name decide."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{name}".encode()).digest()[:8], "big")

    def _held(self, name: str) -> bool:
        heap = self._strata[self._stratum[name]]
        return (-self.rank(name), name) in heap or (-self.rank(name), name) in self._all


def _push(heap: list[tuple[int, str]], most: int, signed: int, name: str) -> Iterable[str]:
    if len(heap) < most:
        heapq.heappush(heap, (signed, name))
        return []
    return [heapq.heappushpop(heap, (signed, name))[1]]
