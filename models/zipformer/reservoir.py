"""Draw a fixed number of steps from a stream of unknown length, independent of their order."""

import heapq
from collections import defaultdict
from collections.abc import Iterable

from nightjar.speech.manifest import rank


def draw(steps: Iterable[tuple[str, int]], size: int, least: int, seed: int) -> list[str]:
    """Draw `size` of the steps (name, stratum) uniformly, and at least `least` of each stratum that has so many.

    A step's rank is a hash of its name and the seed, and the lowest ranks are drawn: the same steps in any order, and
    steps that are not drawn take no memory (bottom-k sampling, Cohen and Kaplan 2007).
    """

    def rank_of(name: str) -> int:
        return int(rank(seed, name)[:16], 16)

    lowest: list[tuple[int, str]] = []  # heaps with the highest rank first, hence the signs
    of_strata: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for name, stratum in steps:
        for heap, most in ((lowest, size), (of_strata[stratum], least)):
            heapq.heappush(heap, (-rank_of(name), name))
            if len(heap) > most:
                heapq.heappop(heap)
    owed = {name for heap in of_strata.values() for _, name in heap}
    rest = {name for _, name in lowest} - owed
    return sorted([*sorted(owed, key=rank_of), *sorted(rest, key=rank_of)][:size], key=rank_of)
