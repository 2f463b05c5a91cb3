"""An environment of doubles of MediaTek's SDK, which is licensed and on no machine of ours; the CLI cannot reach it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.whisper.calibrate import CalibrationOptions, calibrate
from models.whisper.export import export
from nightjar.plugins.recipe import Recipe
from nightjar.speech.manifest import Clip
from nightjar.toolchains.environment import MARKER, override_toolchain
from tests.conftest import need

ROOT = Path(__file__).resolve().parents[3]
DOUBLES = Path(__file__).resolve().parent / "doubles"


class Doubles:
    """The folder of the doubles' environment, and what they are told to fail at."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sdk = folder, folder.parent / "sdk" / "neuron_sdk" / "host"

    def inject(self, converter: dict[str, object] | None = None, ncc: dict[str, object] | None = None) -> None:
        (self.site / "mtk_converter" / "inject.json").write_text(json.dumps(converter or {}))
        (self.sdk / "bin" / "inject.json").write_text(json.dumps({"root": str(ROOT), **(ncc or {})}))

    @property
    def site(self) -> Path:
        return self.folder / "lib" / "python3.11" / "site-packages"


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Doubles:
    """An environment whose mtk_converter and ncc-tflite are strict doubles; torch is that of the tests."""
    folder = tmp_path_factory.mktemp("doubles") / "mtk"
    doubles = Doubles(folder)
    doubles.site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    home = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\nversion = 3.11.0\n")
    shutil.copytree(DOUBLES / "site" / "mtk_converter", doubles.site / "mtk_converter")
    (doubles.site / "mtk_converter-8.13.0.dist-info").mkdir()
    (doubles.site / "tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (doubles.sdk / "bin").mkdir(parents=True)
    (doubles.sdk / "lib").mkdir()
    shutil.copyfile(DOUBLES / "ncc_tflite.py", doubles.sdk / "bin" / "ncc.py")
    program = doubles.sdk / "bin" / "ncc-tflite"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {doubles.sdk / "bin" / "ncc.py"} "$@"\n')
    program.chmod(0o755)
    said = {"path": str(program), "libraries": str(doubles.sdk / "lib"), "version": "8.2.19"}
    (folder / MARKER).write_text(json.dumps({"programs": {"ncc-tflite": said}}))
    doubles.inject()
    return doubles


@pytest.fixture
def doubles(made: Doubles) -> Iterator[Doubles]:
    """The doubles as the toolchain of mtk, failing at nothing."""
    made.inject()
    with override_toolchain("mtk", made.folder):
        yield made


@pytest.fixture(scope="package")
def cached(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of the toy Whisper as the target wants them, and a calibration set of noise."""
    from targets import mtk

    return prepared(random_checkpoint, mtk.recipe("whisper"), tmp_path_factory.mktemp("cached"))


def prepared(checkpoint: Path, recipe: Recipe, folder: Path) -> Path:
    import numpy as np
    import soundfile as sf

    from targets.onnx.runner import open_runner

    export(checkpoint, recipe, folder / "graphs", clamp=True)
    rng, clips = np.random.default_rng(0), []
    (folder / "hidden").mkdir()
    for number in range(2):
        path = folder / f"{number}.wav"
        sf.write(path, 0.1 * rng.standard_normal(32000), 16000)
        clips.append(Clip(id=str(number), audio=path, text="a", speaker="s", duration_s=2.0))
        np.save(folder / "hidden" / f"{number}.hidden.npy", rng.standard_normal((500, 32)).astype(np.float16))
    parts = json.loads((folder / "graphs" / "model.json").read_text())["parts"]
    runner = open_runner(folder / "graphs", parts)
    (folder / "calibration").mkdir()
    options = CalibrationOptions(samples=4, decoder_clips=2)
    calibrate(folder / "graphs", folder / "hidden", clips, options, runner, folder / "calibration")
    return folder


@pytest.fixture(scope="package")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The double of the Neuron runtime, compiled."""
    need("gcc", shutil.which("gcc") is not None, "apt install gcc")
    out = tmp_path_factory.mktemp("neuron") / "libneuron_runtime.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(out), str(DOUBLES / "neuron_runtime.c")]
    subprocess.run(command, check=True)
    return out


@pytest.fixture
def neuronrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The double of `neuronrt`, first on PATH."""
    program = tmp_path / "bin" / "neuronrt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {DOUBLES / "neuronrt.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program
