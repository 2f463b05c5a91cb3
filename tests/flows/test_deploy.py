"""A port becomes a release on a board behind ssh; what fails, breaks or is killed on the way leaves the old one."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.whisper.vocabulary import token_bytes
from nightjar.bundle import Ported, read_manifest, write_bundle
from nightjar.cli import main
from nightjar.data import load_speech
from nightjar.deploy import Canary, deploy, list_releases, roll_back
from nightjar.errors import BadInput, SessionFailed
from nightjar.program import _write_wav
from nightjar.ssh import SshBoard
from tests.flows.conftest import ROOT, shipped_speech, write_speech
from tests.loopback import Loopback

NAME = "one"
Deploy = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("NIGHTJAR_STORE", str(folder))
        patch.setattr("tasks.publish.ROOT", tmp_path_factory.mktemp("reports"))
        yield folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shipped_speech(tmp_path_factory.mktemp("speech"), calibration=4, evaluation=6)


@pytest.fixture
def run(loop: Loopback, speech: list[str], tmp_path: Path) -> Deploy:
    """Deploy whisper-nano in a precision; return the exit code and the results."""

    def run(precision: str = "fp", *more: str) -> tuple[int, dict[str, Any]]:
        written = tmp_path / "deploy.json"
        written.unlink(missing_ok=True)
        code = main([*asked(precision, speech), *more, "--json", str(written)])
        return code, json.loads(written.read_text()) if written.exists() else {}

    return run


def asked(precision: str, speech: list[str]) -> list[str]:
    return [
        "deploy",
        "--board",
        "loop",
        "--name",
        NAME,
        "--precision",
        precision,
        *speech,
        "--calibration-samples",
        "4",
    ]


@pytest.fixture(scope="module")
def toys(random_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Canary]:
    """Two bundles of weights of noise, float and int8, and a canary of what they themselves hear."""
    words = {f"c{number}": word for number, word in enumerate(("red", "blue"))}
    speech = write_speech(tmp_path_factory.mktemp("toy"), words)
    clips, made = load_speech(speech), []
    for precision in ("fp", "int8"):
        model = ["--model", "toy", "--checkpoint", str(random_checkpoint), "--calibration-set", str(speech)]
        written = speech.parent / "t.json"
        command = ["transcribe", *(str(clip.audio) for clip in clips), "--precision", precision, *model]
        assert main([*command, "--json", str(written)]) == 0
        built = max((store / "build").iterdir(), key=lambda path: path.stat().st_mtime)
        described = json.loads((built / "model.json").read_text())
        out = speech.parent / precision
        out.mkdir()
        figures = {
            "verdict": "PASS",
            "tier": "host",
            "unit": "word",
            "interval": (0, 0),
            "command": "",
            "made_from": {},
        }
        counts = dict.fromkeys(("wer", "wer_float", "wer_stock", "delta_wer", "clips", "words", "skipped"), 0)
        write_bundle(
            out,
            binary=built,
            modules=["models.whisper.decode", "targets.onnx.runner"],
            tokens=token_bytes(described),
            runtimes={},
            model="toy",
            language="en",
            port=Ported.model_validate({**figures, **counts, "made_from": {}}),
        )
        texts = {Path(file["file"]).stem: file["text"] for file in json.loads(written.read_text())["files"]}
        made.append((out, texts))
    assert all(made[0][1].values())
    assert read_manifest(made[0][0]).id != read_manifest(made[1][0]).id
    return [folder for folder, _ in made], Canary(clips, made[0][1], "en", 100.0)


def place(loop: Loopback) -> Path:
    return loop.scratch / "deployed" / NAME


def current(loop: Loopback) -> str:
    link = place(loop) / "current"
    if not link.is_symlink():
        return ""
    assert (link / "transcribe.py").is_file(), "current leads nowhere"
    return link.readlink().name


def releases(loop: Loopback) -> set[str]:
    return {path.name for path in (place(loop) / "releases").iterdir()}


def on_board(loop: Loopback, *words: str) -> str:
    """Run a command on the board as its user would: by ssh, with nothing of ours on the way."""
    config = loop.folder / "ssh_config"
    command = ["ssh", "-F", str(config), "loop", "cd / && " + shlex.join(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lying_runtime(loop: Loopback, folder: Path, body: str) -> Path:
    """Write a boards.toml whose python has another onnxruntime behind the same version."""
    (folder / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'onnxruntime': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        import onnxruntime as ort\n"
        "        own = ort.InferenceSession.run\n"
        f"        def run(self, *a, **k):\n            {body}\n"
        "        ort.InferenceSession.run = run\n"
        "        return importlib.util.spec_from_loader(name, Same(ort))\n"
        "class Same:\n"
        "    def __init__(self, module): self.module = module\n"
        "    def create_module(self, spec): return self.module\n"
        "    def exec_module(self, module): pass\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    python = folder / "lying python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder))} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return loop.boards(folder / "lying.toml", python=str(python))


def test_what_is_deployed_hears_what_the_session_heard(
    run: Deploy, loop: Loopback, store: Path, speech: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["port", "--board", "loop", *asked("fp", speech)[5:]]) == 0
    capsys.readouterr()
    code, results = run()
    assert code == 0
    assert all(stage["cached"] for stage in results["port"]["stages"]), "the port is not made again"
    assert results["id"] == results["current"] == current(loop)
    assert results["path"] == str(place(loop) / "current" / "transcribe.py")
    assert "canary: WER 0.00 % on 6 clips" in capsys.readouterr().out
    key = results["port"]["made_from"]["hypotheses"]["key"]
    lines = map(json.loads, (store / "evaluate" / key / "hypotheses.jsonl").read_text().splitlines())
    heard = {line["id"]: line["text"] for line in lines}
    clips = {clip.id: clip for clip in load_speech(Path(speech[3]))}
    for name, clip in clips.items():
        _write_wav(tmp_path / "wavs" / f"{name}.wav", clip.audio)
    wavs = [str(tmp_path / "wavs" / f"{name}.wav") for name in sorted(clips)]
    printed = on_board(loop, sys.executable, "-I", results["path"], *wavs).splitlines()
    assert [line.rstrip() for line in printed] == [f"{wav}: {heard[Path(wav).stem]}".rstrip() for wav in wavs]
    assert any(heard.values())
    assert not list((loop.scratch / "jobs").iterdir())


def test_the_example_needs_numpy_and_the_runtime_and_explains_what_it_cannot_read(
    loop: Loopback, toys: tuple[list[Path], Canary], tmp_path: Path
) -> None:
    (fp, _), canary = toys
    path = deploy("loop", NAME, fp, canary, keep=3).path
    _write_wav(tmp_path / "clip.wav", canary.clips[0].audio)
    traced = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
        "files = [getattr(m, '__file__', '') or '' for m in list(sys.modules.values())]\n"
        "print(*sorted({f.partition('site-packages/')[2].partition('/')[0] for f in files if 'site-packages' in f}))\n"
        f"print(*[f for f in files if f.startswith({str(ROOT)!r})])\n"
    )
    text, packages, ours = on_board(loop, sys.executable, "-I", "-c", traced, path, str(tmp_path / "clip.wav")).split(
        "\n"
    )[:3]
    assert text
    assert {name for name in packages.split() if not name.startswith("_")} <= {"numpy", "onnxruntime", "coloredlogs"}
    assert [path for path in ours.split() if ".venv" not in path] == [], "it reaches into the host's checkout"
    (tmp_path / "text.wav").write_text("no audio")
    done = subprocess.run(
        [sys.executable, "-I", path, str(tmp_path / "text.wav")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("transcribe.py: ")
    assert len(done.stderr.splitlines()) == 1
    assert "ffmpeg" in done.stderr


def test_the_next_one_list_and_back(
    run: Deploy,
    loop: Loopback,
    toys: tuple[list[Path], Canary],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, first = run("fp")
    assert code == 0
    manifest = json.loads((place(loop) / "current" / "manifest.json").read_text())
    for name in ("verdict", "wer", "wer_stock", "tier", "clips", "command"):
        assert manifest["port"][name] == first["port"][name]
    assert manifest["port"]["made_from"]["binary"]["sha256"] == first["port"]["made_from"]["binary"]["sha256"]
    (_, int8), canary = toys
    second = deploy("loop", NAME, int8, canary, keep=3)
    assert (second.before, second.current) == (first["id"], current(loop))
    capsys.readouterr()
    assert main(["deploy", "--list", "--board", "loop"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(second.id in row and "current" in row and "int8" in row for row in rows)
    assert any(first["id"] in row and "before" in row and "fp" in row and "PASS" in row for row in rows)
    back = tmp_path / "back.json"
    assert main(["rollback", "--board", "loop", "--json", str(back)]) == 0
    assert json.loads(back.read_text())["current"] == first["id"] == current(loop)
    capsys.readouterr()
    assert main(["rollback", "--board", "loop"]) == 2
    error = capsys.readouterr().err.strip()
    assert "there is no release before this one" in error
    assert "\n" not in error
    assert current(loop) == first["id"]
    assert main(["rollback", "--board", "loop", "--name", "other"]) == 2
    assert "nothing is deployed" in capsys.readouterr().err


def test_one_release_is_kept_where_one_is_asked_for(loop: Loopback, toys: tuple[list[Path], Canary]) -> None:
    (fp, int8), canary = toys
    deploy("loop", NAME, fp, canary, keep=3)
    second = deploy("loop", NAME, int8, canary, keep=1)
    assert releases(loop) == {second.id} == {current(loop)}
    with pytest.raises(BadInput, match="no release before"):
        roll_back("loop", NAME)


def test_a_runtime_that_computes_something_else_fails_the_canary(
    loop: Loopback, toys: tuple[list[Path], Canary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fp, int8), canary = toys
    exact = canary._replace(limit=0.0)
    first = deploy("loop", NAME, fp, exact, keep=3)
    assert (first.reason, first.canary_wer) == ("", 0)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(lying_runtime(loop, tmp_path, "return [-o for o in own(self, *a, **k)]")))
    failed = deploy("loop", NAME, int8, exact, keep=3)
    assert failed.reason.startswith("canary WER ")
    assert failed.canary_wer is not None
    assert failed.canary_wer > 5
    assert current(loop) == failed.current == first.id
    assert releases(loop) == {first.id}
    crashing = lying_runtime(loop, tmp_path, "raise RuntimeError('RKNN_ERR_DEVICE_UNAVAILABLE')")
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(crashing))
    failed = deploy("loop", NAME, int8, canary, keep=3)
    assert "RKNN_ERR_DEVICE_UNAVAILABLE" in failed.reason
    assert current(loop) == first.id
    assert releases(loop) == {first.id}
    again = deploy("loop", NAME, fp, canary, keep=3)
    assert again.reason
    assert current(loop) == first.id, "the current one stays, even where it is itself what failed"
    assert releases(loop) == {first.id}


def test_a_byte_that_changes_on_the_board_before_the_switch_is_noticed(
    loop: Loopback, toys: tuple[list[Path], Canary], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fp, int8), canary = toys
    first = deploy("loop", NAME, fp, canary, keep=3)
    own = SshBoard.put_all

    def damaging(self: SshBoard, pairs: Any) -> None:
        own(self, pairs)
        for _, remote in pairs:
            if remote.name == "tokens.txt":
                with (loop.scratch / remote).open("r+b") as file:
                    file.seek(1000)
                    file.write(b"!")

    with monkeypatch.context() as patch:
        patch.setattr(SshBoard, "put_all", damaging)
        with pytest.raises(
            SessionFailed, match=r"came damaged to board loop \(tokens.txt is not what was sent\), nothing"
        ):
            deploy("loop", NAME, int8, canary, keep=3)
    assert current(loop) == first.id
    assert releases(loop) == {first.id}
    second = deploy("loop", NAME, int8, canary, keep=3)
    assert second.current == second.id == current(loop), "the same command sends what is damaged"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_switches_nothing(loop: Loopback, toys: tuple[list[Path], Canary]) -> None:
    (fp, int8), canary = toys
    size = sum(path.stat().st_size for path in fp.rglob("*"))
    loop.scratch.mkdir(parents=True, exist_ok=True)
    option = f"size={int(size * 1.5) >> 10}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(loop.scratch)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not mount a tmpfs")
    try:
        first = deploy("loop", NAME, fp, canary, keep=3)
        (loop.scratch / "filler").write_bytes(b"x" * (size // 4))
        with pytest.raises(SessionFailed, match=r"MiB free on the board|No space left") as raised:
            deploy("loop", NAME, int8, canary, keep=3)
        assert "\n" not in str(raised.value)
        assert current(loop) == first.id
        assert releases(loop) == {first.id}
        (loop.scratch / "filler").unlink()
    finally:
        subprocess.run(["umount", str(loop.scratch)], check=True)


def started(bundle: Path, canary: Canary) -> subprocess.Popen[bytes]:
    """Deploy in a process of its own."""
    source = (
        "import sys\nfrom pathlib import Path\nfrom nightjar.data import load_speech\n"
        "from nightjar.deploy import Canary, deploy\n"
        f"canary = Canary(load_speech(Path({str(canary.clips[0].audio.parent / 'speech.jsonl')!r})), "
        f"{dict(canary.expected)!r}, 'en', 100.0)\n"
        f"deploy('loop', {NAME!r}, Path({str(bundle)!r}), canary, keep=3)\n"
    )
    return subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_until(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None or what(), "it ended before"
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_kill_before_or_after_the_switch_leaves_one_release_current(
    loop: Loopback, toys: tuple[list[Path], Canary]
) -> None:
    (fp, int8), canary = toys
    first, second = deploy("loop", NAME, fp, canary, keep=3).id, read_manifest(int8).id
    uploading = started(int8, canary)
    wait_until(lambda: (place(loop) / "releases" / second).exists(), uploading)
    uploading.send_signal(signal.SIGKILL)
    uploading.wait()
    assert current(loop) == first
    assert list_releases("loop")[NAME].current == first
    switching = started(int8, canary)
    wait_until(lambda: current(loop) == second, switching)
    switching.send_signal(signal.SIGKILL)
    switching.wait()
    assert current(loop) == second
    assert list_releases("loop")[NAME].history == [first, second]
    assert roll_back("loop", NAME).current == first == current(loop)


def test_two_at_once_take_turns(loop: Loopback, toys: tuple[list[Path], Canary]) -> None:
    bundles, canary = toys
    done: dict[Path, str] = {}

    def one(bundle: Path) -> None:
        done[bundle] = deploy("loop", NAME, bundle, canary, keep=3).id

    threads = [threading.Thread(target=one, args=[bundle]) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 2
    history = [entry["id"] for entry in json.loads((place(loop) / "history.json").read_text())]
    assert sorted(history) == sorted(done.values()) == sorted(releases(loop))
    assert current(loop) == history[-1]


def test_a_port_that_failed_is_deployed_only_by_force(
    run: Deploy, loop: Loopback, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.port import port

    class Failed:
        @staticmethod
        def fn(request: Any) -> dict[str, Any]:
            made: dict[str, Any] = port.fn(request)
            gate = {**made["gates"][0], "outcome": "FAIL", "sentence": "WER of binary − float +9.00 points"}
            return {**made, "verdict": "FAIL", "gates": [gate]}

    monkeypatch.setattr("flows.deploy.port", Failed)
    code, refused = run("fp")
    assert code == 1
    assert "the port's verdict is FAIL (WER of binary − float +9.00 points)" in refused["reason"]
    assert "--force" in capsys.readouterr().out
    assert not (loop.scratch / "deployed").exists(), "nothing was uploaded"
    code, forced = run("fp", "--force")
    assert (code, forced["current"]) == (0, current(loop))
    assert json.loads((place(loop) / "current" / "manifest.json").read_text())["port"]["verdict"] == "FAIL"


@pytest.mark.parametrize("name", ["../x", "a/b", "-rf", "$(touch x)", ".", "a b", "été"])
def test_hostile_names_are_refused_in_one_line(loop: Loopback, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--board", "loop", f"--name={name}"]) == 2
    assert main(["rollback", "--board", "loop", f"--name={name}"]) == 2
    assert main(["rollback", "--board", "loop", "--name", "one", f"--to={name}"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert all(line.startswith("nightjar: ") for line in errors)
    assert not (loop.scratch / "deployed").exists()


def test_long_audio_is_heard_as_the_session_hears_it_in_pieces(
    loop: Loopback, toys: tuple[list[Path], Canary], random_checkpoint: Path, tmp_path: Path
) -> None:
    import numpy as np

    (fp, _), canary = toys
    done = deploy("loop", NAME, fp, canary, keep=3)
    rng = np.random.default_rng(0)
    words = [part for _ in range(9) for part in (rng.standard_normal(32000) * 500, np.zeros(8000))]
    _write_wav(tmp_path / "long.wav", np.concatenate(words).astype(np.int16))
    text = on_board(loop, sys.executable, "-I", done.path, str(tmp_path / "long.wav")).strip()
    written = tmp_path / "t.json"
    model = ["--model", "toy", "--checkpoint", str(random_checkpoint), "--json", str(written)]
    assert main(["transcribe", str(tmp_path / "long.wav"), "--board", "loop", *model]) == 0
    assert text == " ".join(json.loads(written.read_text())["files"][0]["text"].split()), "a line per file"
    assert len(text.split()) > 10
