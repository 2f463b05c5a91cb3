"""Inject a hundred seeded faults into harvests of 200 clips, about 15 minutes; `make test` injects ten.

    .venv/bin/python benchmarks/board_faults.py [FAULTS] [PER_HARVEST]

Prints a table by kind of fault. Each harvest must finish by the same command, with every result exactly once, no
finished clip computed again and no scratch left. Exits with 1 at the first that does not.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults import FAULTS, Bench, throw
from tests.loopback import Loopback

CLIPS, SEED = 200, 20261120


def main(count: int, together: int) -> int:
    chance = random.Random(SEED)
    thrown, commands, again = Counter[str](), Counter[str](), Counter[str]()
    failed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sshd").mkdir()
        loop = Loopback(Path(folder) / "sshd")
        bench = Bench(Path(folder), CLIPS, loop, size_mib=24)
        try:
            left: list[str] = []
            while (done := thrown.total()) < count and not failed:
                # Kinds in turn: each occurs equally often, and none twice in a harvest.
                left = left or chance.sample(FAULTS, len(FAULTS))
                struck = [left.pop() for _ in range(min(together, len(left), count - done))]
                try:
                    took = throw(bench, struck, chance)
                except AssertionError as error:
                    failed += 1
                    print(f"FAILED {struck}: {str(error)[:2000]}", flush=True)
                    continue
                for fault in struck:
                    thrown[fault] += 1
                    commands[fault] += took["commands"] - 1
                    again[fault] += took["again"]
                print(f"{thrown.total()}: {took}", flush=True)
        finally:
            bench.close()
            loop.stop()
    print("\n| fault | injected | extra commands of its harvests | clips started twice in them |\n|---|---|---|---|")
    for fault in FAULTS:
        print(f"| {fault} | {thrown[fault]} | {commands[fault]} | {again[fault]} |")
    print(f"\n{sum(thrown.values())} faults, {failed} harvests failed, {time.monotonic() - began:.0f} s, seed {SEED}")
    return 1 if failed else 0


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    sys.exit(main(*given, *(100, 2)[len(given) :]))
