"""A Genio board by ssh: a real sshd on loopback, the double of neuronrt or of the C library where a board has them."""

import json
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.whisper.decode import features
from models.whisper.export import export
from nightjar.boards.board import LocalBoard
from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.cli.main import main
from nightjar.errors import SessionFailed
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.sessions.run import run_session
from nightjar.speech.manifest import Clip, load_speech
from nightjar.toolchains.environment import override_toolchain
from targets import mtk as target
from targets.mtk import preflight, runner
from tests.loopback import Loopback
from tests.targets.mtk.conftest import DOUBLES, ROOT, Doubles

pytestmark = pytest.mark.slow

LOAD_S = 2.0  # of a network of the C double in mode 3
SYSTEM = "/usr/bin:/bin"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Noise and a tone, of which the toy says different tokens."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    tone = 9000 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for name, wave in (("noise", rng.standard_normal(16000) * 900), ("tone", tone)):
        soundfile.write(folder / f"{name}.wav", wave.astype(np.int16), 16000)
    return load_speech(folder, transcribed=False)


@pytest.fixture(scope="module")
def binary(made: Doubles, random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy Whisper of 2 s and at most 7 tokens, compiled by the doubles."""
    graphs, out = tmp_path_factory.mktemp("graphs"), tmp_path_factory.mktemp("binary")
    small = target.recipe("whisper").model_copy(update={"window_s": 2, "decoder_length": 8})
    export(random_checkpoint, small, graphs, clamp=True)
    made.inject()
    with override_toolchain("mtk", made.folder):
        target.compile(graphs, None, target.Options(), out)
    return out


def doubling(folder: Path, mode: int) -> Path:
    """Write a binary for the C double: its encoder gives twice the mel of 2 s."""
    mel = {"name": "mel", "shape": [1, 80, 200], "dtype": "float32"}
    part = {"file": "encoder.dla", "inputs": [mel], "outputs": [{**mel, "name": "hidden"}]}
    model = {"family": "whisper", "dims": {"n_mels": 80}, "n_frames": 200, "recipe": {"window_s": 2}}
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({**model, "parts": {"encoder": part}}))
    (folder / "binary.json").write_text(json.dumps({"parts": {"encoder": {**part, "runner": "mtk"}}}))
    (folder / "encoder.dla").write_text(f"NEURON 1 1 16000 4 16000 {mode}")
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a `neuronrt` that starts fast."""
    double, name = DOUBLES / "neuronrt_warm.py", f"nightjar-{uuid.uuid4()}"
    server = subprocess.Popen(
        [sys.executable, str(double), "serve", name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    called = f'export NIGHTJAR_DOUBLE_NEURONRT_SERVER={name}\nexec {sys.executable} -S -E {double} "$@"'
    yield script(tmp_path_factory.mktemp("program") / "neuronrt", called).parent
    server.terminate()
    server.wait()
    server.stdout.close()


def script(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def genio(loop: Loopback, doubles: Doubles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what the environment of `loop` is: its Python is a script that sets it, as a user's may be."""

    def become(**environment: object) -> None:
        environment = {"PATH": SYSTEM, **environment}
        said = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
        python = script(tmp_path / "python", "\n".join([*said, f'exec {sys.executable} "$@"']))
        monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "genio.toml", python=str(python))))

    return become


def test_a_session_by_ssh_says_what_the_local_one_says(
    genio: Callable[..., None], program: Path, binary: Path, clips: list[Clip], loop: Loopback, tmp_path: Path
) -> None:
    path = f"{program}:{SYSTEM}"
    here = LocalBoard(environment={**os.environ, "PATH": path})
    local = run_session(here, binary, clips, tmp_path / "local", decode=True)
    genio(PATH=path)
    board = board_of(plugin("targets", "mtk"), "loop")
    assert (board.tier, board.remote) == ("device", True)
    assert board.facts.runtimes["neuron"] == "8.2.16", "what neuronrt says there"
    assert board.facts.runtimes["apusys"] == preflight.versions()["apusys"]
    lines = run_session(board.connect(), binary, clips, tmp_path / "job", decode=True)
    assert [line["id"] for line in lines] == [clip.id for clip in clips]
    heard = [line["tokens"] for line in lines]
    assert heard == [line["tokens"] for line in local]
    assert heard[0] != heard[1], "tokens depend on what is heard, or their equality says nothing"
    assert all(line["steps"] > len(line["tokens"]) >= 5 for line in lines)
    assert all(line["seconds"].keys() == {"features", "encoder", "cross", "decoder", "total"} for line in lines)
    assert not list((loop.scratch / "jobs").iterdir()), "a finished job stays behind"


def test_the_library_by_ssh_gives_the_same_bytes_and_its_loading_is_in_no_clip(
    genio: Callable[..., None], library: Path, clips: list[Clip], tmp_path: Path
) -> None:
    quick, slow = doubling(tmp_path / "quick", mode=0), doubling(tmp_path / "slow", mode=3)
    model = json.loads((slow / "model.json").read_text())
    genio(LD_LIBRARY_PATH=library.parent)
    board = board_of(plugin("targets", "mtk"), "loop")
    assert board.facts.runtimes["neuron"] == "unknown", "a library does not say its version"
    here = LocalBoard(environment={**os.environ, "NIGHTJAR_NEURON": str(library)})
    run_session(here, quick, clips, tmp_path / "local", decode=False, harvest=["hidden"])
    start = time.perf_counter()
    lines = run_session(board.connect(), slow, clips, tmp_path / "job", decode=False, harvest=["hidden"])
    assert time.perf_counter() - start > LOAD_S
    assert [line["id"] for line in lines] == [clip.id for clip in clips]
    assert all(0 < line["seconds"]["encoder"] <= line["seconds"]["total"] < LOAD_S for line in lines)
    for clip in clips:
        local, fetched = (tmp_path / name / "harvest" / f"{clip.id}.hidden.npy" for name in ("local", "job"))
        assert fetched.read_bytes() == local.read_bytes()
        mel = features(soundfile.read(clip.audio, dtype="float32")[0], model)["mel"][0]
        np.testing.assert_allclose(np.load(fetched), 2 * mel, atol=2e-3)


def said_by(work: Path, binary: Path, clips: list[Clip]) -> str:
    """Begin a session on `loop` unasked, as after a runtime was replaced; return its one line."""
    with pytest.raises(SessionFailed) as failed:
        run_session(SshBoard(find_board("loop")), binary, clips, work, decode=True)
    assert failed.value.exit_code == 4
    assert "\n" not in str(failed.value)
    return str(failed.value)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """Ask for a port on `loop` by the command line, which something must stand against; return its one line."""
    capsys.readouterr()
    assert main(["port", "--target", "mtk", "--board", "loop"]) == 3
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = (line for line in lines if line.startswith("nightjar: "))
    assert line == lines[-1]
    return line


def test_a_board_without_a_runtime_is_refused_and_what_to_install_is_said(
    genio: Callable[..., None],
    binary: Path,
    clips: list[Clip],
    loop: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    genio()
    assert "board loop has no neuron, which runs mtk" in refused(capsys)
    assert not (loop.scratch / "cache").exists(), "something was uploaded"
    assert main(["board", "check", "loop", "--target", "mtk"]) == 3
    assert "install mediatek-libneuron and mediatek-neuron-utils on the board" in capsys.readouterr().out
    assert "no Neuron runtime on this board: install mediatek-libneuron" in said_by(tmp_path / "job", binary, clips)


def test_a_runtime_of_another_version_is_refused_before_a_run_and_in_one(
    genio: Callable[..., None],
    binary: Path,
    clips: list[Clip],
    loop: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    (tmp_path / "bin").mkdir()
    mismatch = "ERROR: The DLA file is V8, mismatching runtime V7"
    version = '[ "$*" = -v ] && exec echo "Version: 7.3.15"'
    script(tmp_path / "bin" / "neuronrt", f"{version}\necho '{mismatch}' >&2\nexit 1")
    genio(PATH=f"{tmp_path / 'bin'}:{SYSTEM}")
    assert "the Neuron runtime is 7.3.15 and ncc-tflite 8.2.19: a .dla of another major" in refused(capsys)
    assert not (loop.scratch / "cache").exists(), "something was uploaded"
    assert f"neuronrt cannot run encoder.dla (1): {mismatch}" in said_by(tmp_path / "job", binary, clips)


def test_which_runtime_is_taken_is_the_boards_to_say(
    genio: Callable[..., None],
    program: Path,
    library: Path,
    binary: Path,
    clips: list[Clip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = {"PATH": f"{program}:{SYSTEM}", "LD_LIBRARY_PATH": library.parent}
    genio(**both)
    monkeypatch.setenv("NIGHTJAR_NEURON", "neuronrt")  # here, which is not there
    stale = "cannot create encoder.dla: error 4, bad data; a .dla of another SDK version than the runtime"
    assert stale in said_by(tmp_path / "job", binary, clips)
    latched = said_by(tmp_path / "latched", doubling(tmp_path / "encoder", mode=1), clips)
    assert "latched the first; set NIGHTJAR_NEURON=neuronrt on the board" in latched
    genio(**both, NIGHTJAR_NEURON="neuronrt")
    board = board_of(plugin("targets", "mtk"), "loop").connect()
    lines = run_session(board, binary, clips, tmp_path / "job", decode=False, harvest=["hidden"])
    assert [line["id"] for line in lines] == [clip.id for clip in clips]


def test_a_runtime_that_the_preflight_finds_the_runner_finds() -> None:
    assert preflight.SBIN == runner.SBIN
    assert preflight.LIBRARIES == runner.LIBRARIES
