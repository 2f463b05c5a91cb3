"""What tests of the board service and of datasets share: a small real encoder, and speech of noise."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.errors import NightjarError
from nightjar.request import HarvestRequest
from nightjar.sessions.bulk_harvest import harvest_speech
from tests import served
from tests.loopback import Loopback


@pytest.fixture(scope="session")
def small_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float binary of 5 s whose encoder gives hidden (1, 250, 32)."""
    return served.small_binary(tmp_path_factory.mktemp("small") / "binary")


@pytest.fixture(scope="session")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 150 clips of 0.3 s, no two alike."""
    folder, rng = tmp_path_factory.mktemp("noises"), np.random.default_rng(0)
    for number in range(150):
        soundfile.write(folder / f"c{number:03d}.wav", (rng.standard_normal(4800) * 900).astype(np.int16), 16000)
    return folder


@pytest.fixture(scope="session")
def local_dataset(small_binary: Path, noises: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a local session harvests of them, in shards of 65 clips."""
    out = tmp_path_factory.mktemp("local") / "dataset"
    harvest_speech(HarvestRequest(binary=small_binary, speech=noises, board="local", out=out, shard_mib=1))
    return out


@pytest.fixture
def board(loop: Loopback) -> Iterator[SshBoard]:
    with SshBoard(find_board("loop")) as opened:
        yield opened


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(3_000_001))
    return path


def one_line(error: NightjarError) -> str:
    assert "\n" not in str(error)
    return str(error)
