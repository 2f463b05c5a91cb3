"""Ten seeded faults in harvests of 200 clips over a real sshd; benchmarks/board_faults.py throws a hundred."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.faults import Bench, throw
from tests.loopback import SSHD, Loopback

pytestmark = pytest.mark.slow

CLIPS = 200


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    need("sshd", SSHD is not None and shutil.which("ssh") is not None, "apt install openssh-server openssh-client")
    (tmp_path / "sshd").mkdir()
    loop = Loopback(tmp_path / "sshd")
    made = Bench(tmp_path, CLIPS, loop, size_mib=24)
    yield made
    made.close()
    loop.stop()


@pytest.mark.parametrize(
    "faults",
    [
        ("connection cut", "clip crashes", "host killed", "board disk full"),
        ("session killed", "byte flipped in transit", "host disk full"),
        ("sshd killed", "byte flipped at rest", "reboot"),
    ],
    ids=", ".join,
)
def test_a_harvest_outlives(bench: Bench, faults: tuple[str, ...]) -> None:
    throw(bench, faults, random.Random(", ".join(faults)))
