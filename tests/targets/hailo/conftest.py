"""The toy Whisper of these tests, exported as a Hailo-8L wants it, with calibration; and the doubles' environment."""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from models.whisper import decode
from models.whisper.calibrate import CalibrationOptions, calibrate
from models.whisper.export import export
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip
from nightjar.toolchains.environment import Toolchain, override_toolchain
from targets import hailo
from targets.onnx.runner import open_runner
from tests.targets.hailo.environment import DOUBLES, make_environment

STATIC: dict[str, Any] = {"decoder": "static", "decoder_length": 32}


def _clip(folder: Path, number: int) -> Clip:
    path = folder / f"{number}.wav"
    sf.write(path, np.cumsum(np.random.default_rng(number).normal(size=32000)) * 1e-3, 16000)
    return Clip(id=str(number), audio=path, text="", duration_s=2.0, speaker=str(number))


def prepare(checkpoint: Path, folder: Path, **fields: Any) -> Path:
    """Export, harvest and calibrate into graphs/, hidden/ and calibration/."""
    graphs, clips = folder / "graphs", [_clip(folder, number) for number in range(2)]
    export(
        checkpoint, hailo.recipe("whisper").model_copy(update={"window_s": 3, "decoder_length": 64, **fields}), graphs
    )
    model = json.loads((graphs / "model.json").read_text())
    runner = open_runner(graphs, model["parts"], {"threads": 1})
    (folder / "hidden").mkdir()
    for clip in clips:
        features = decode.features(load_audio(clip.audio).astype(np.float32) / 32768, model)
        rows = decode.encode(runner, features, model)["hidden"][0].astype(np.float16)
        np.save(folder / "hidden" / f"{clip.id}.hidden.npy", rows)
    options = CalibrationOptions(samples=4, decoder_clips=2)
    calibrate(graphs, folder / "hidden", clips, options, runner, folder / "calibration")
    return folder


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A random Whisper whose decoder keeps a cache, for the board's CPU."""
    return prepare(random_checkpoint, tmp_path_factory.mktemp("cached"))


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """The same with a decoder that the NPU can take."""
    return prepare(random_checkpoint, tmp_path_factory.mktemp("static"), **STATIC)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("doubles"))


@pytest.fixture
def sdk(environment: Path) -> Iterator[Toolchain]:
    """The doubles as this process's toolchain of hailo, with nothing injected."""
    (environment / "hailo" / "inject.json").unlink(missing_ok=True)
    with override_toolchain("hailo", environment) as found:
        yield found


@pytest.fixture
def inline(sdk: Toolchain, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toolchain]:
    """The same, its calls made in this process: a start of Python and numpy each is most of a test's time."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    monkeypatch.setenv("HAILO_DOUBLE", str(sdk.folder))

    def call(self: Toolchain, module: str, job: Mapping[str, Any], folder: Path, *rest: Any, **more: Any) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return json.loads(json.dumps(importlib.import_module(module).main(json.loads(json.dumps(job)))))

    monkeypatch.setattr(Toolchain, "call", call)
    yield sdk
    for name in [name for name in sys.modules if name.startswith("hailo_sdk_client") or name == "injected"]:
        del sys.modules[name]
