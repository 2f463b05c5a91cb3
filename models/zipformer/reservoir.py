"""Draw a fixed number of steps from a stream of unknown length, independent of their order."""

import hashlib
import heapq


class Reservoir:
    """Draw `size` steps uniformly, and at least `least` of each stratum that has so many.

    A step's rank is a hash of its name and the seed, and the lowest ranks are drawn: the same steps in any order, and
    steps that are not drawn take no memory (bottom-k sampling, Cohen and Kaplan 2007).
    """

    def __init__(self, size: int, least: int, seed: int) -> None:
        self.size, self.least, self.seed = size, least, seed
        self._all: list[tuple[int, str]] = []  # heaps with the highest rank first, hence the signs
        self._strata: dict[int, list[tuple[int, str]]] = {}
        self._stratum: dict[str, int] = {}

    def offer(self, name: str, stratum: int) -> list[str] | None:
        """Return the steps that this one displaces, None where it is not drawn itself."""
        entry, pushed_out = (-self.rank(name), name), []
        for heap, most in ((self._all, self.size), (self._strata.setdefault(stratum, []), self.least)):
            if len(heap) < most:
                heapq.heappush(heap, entry)
            else:
                pushed_out.append(heapq.heappushpop(heap, entry)[1])
        self._stratum[name] = stratum
        displaced = {other for other in pushed_out if not self._is_drawn(other)}
        for other in displaced:
            del self._stratum[other]
        return None if name in displaced else sorted(displaced)

    def chosen(self) -> list[str]:
        """Return the steps drawn, `size` at most: first the least of each stratum, then the lowest ranks."""
        owed = {name for heap in self._strata.values() for _, name in heap}
        rest = sorted(({name for _, name in self._all} - owed), key=self.rank)
        owed_first = sorted(owed, key=self.rank)
        return sorted([*owed_first[: self.size], *rest[: max(0, self.size - len(owed))]], key=self.rank)

    def rank(self, name: str) -> int:
        """Return a step's place in an order that the seed and its name decide."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{name}".encode()).digest()[:8], "big")

    def _is_drawn(self, name: str) -> bool:
        entry = (-self.rank(name), name)
        return entry in self._strata[self._stratum[name]] or entry in self._all
