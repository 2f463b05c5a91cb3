"""What tests of the board service and of datasets share: a small real encoder, and speech of noise."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from nightjar.bulk import harvest_speech
from nightjar.request import HarvestRequest
from tests import served


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
