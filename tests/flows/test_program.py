"""A board's own executable, called clip by clip behind ssh: its score, its dumps, and what it does wrong."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.whisper.vocabulary import token_bytes
from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.cli.main import main
from nightjar.errors import SessionFailed
from nightjar.sessions.board_program import BoardProgram, run_program
from nightjar.speech.manifest import load_speech
from tests.flows.conftest import ROOT, shipped_speech, write_speech
from tests.loopback import Loopback

pytestmark = pytest.mark.slow

# What rknn_model_zoo's demo does, with onnxruntime: whisper_demo BINARY en CLIP.wav
DEMO = f"""#!{sys.executable}
import base64, json, os, sys, wave
from pathlib import Path
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as a session has it: some processors round otherwise with more
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from models.whisper.decode import decode, encode, features
from targets.onnx.runner import open_runner
binary, language, clip = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
model = json.loads((binary / "model.json").read_text())
runner = open_runner(binary, json.loads((binary / "binary.json").read_text())["parts"], {{"own_process": True}})
print("model input num: 1, output num: 1\\n  index=0, name=x, n_dims=3, dims=[1, 80, 3000]")
with wave.open(clip) as file:
    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
hidden = encode(runner, features(samples.astype(np.float32) / 32768.0, model), model)
hidden["hidden"][0].astype("<f4").tofile("enc_000000.bin")
tokens = json.loads((binary / "texts.json").read_text())
text = b"".join(base64.b64decode(tokens[str(token)]) for token in decode(runner, hidden, model, language)["tokens"])
print("\\nWhisper output: ", text.decode().strip())
print("\\nReal Time Factor (RTF): 0.500 / %.3f = 0.1" % (len(samples) / 16000))
"""

# What goes wrong, by the clip's name: whisper_demo TEXTS CLIP.wav
TABLE = f"""#!{sys.executable}
import json, os, pathlib, signal, subprocess, sys, time
clip = pathlib.Path(sys.argv[2]).stem
said = "Whisper output: " + json.loads(pathlib.Path(sys.argv[1]).read_text()).get(clip, "")
if clip == "hangs":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "left-" + sys.argv[1]])
    print(said, flush=True)
    time.sleep(600)
if clip == "crashes":
    print("E RKNN: [/red][E] rknn_init fail! ret=-6", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if clip == "gives-up":
    sys.exit("cannot open model")
if clip == "floods":
    while True:
        print("x" * 10000)
if clip == "is-silent":
    sys.exit()
if clip == "babbles":
    os.write(1, bytes(range(256)) * 10)
    sys.exit()
if clip == "colours":
    said = "\\x1b[2J\\x1b]0;title\\x07loading 50%\\rloading 100%\\r\\n\\x1b[1;32m" + said + "\\x1b[0m"
if clip == "rambles":
    said += " and" * 4000
print(said)
print("Real Time Factor (RTF): 1.2.3 / . = ..." if clip == "miscounts" else "Real Time Factor (RTF): 0.5 / 2.0 = 0.25")
"""


@pytest.fixture(scope="module", autouse=True)
def store(shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTJAR_STORE", str(shared_store))
        patch.setenv("NIGHTJAR_REPORTS", str(tmp_path_factory.mktemp("reports")))
        yield shared_store


def executable(path: Path, source: str) -> Path:
    path.write_text(source)
    path.chmod(0o755)
    return path


def evaluated(tmp_path: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    written = tmp_path / "evaluated.json"
    code = main(["evaluate", *map(str, arguments), "--json", str(written)])
    return code, json.loads(written.read_text()) if written.exists() else {}


def test_a_demo_that_runs_the_shipped_model_scores_and_its_dumps_are_the_harvest(
    loop: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "artifacts"  # of its own, to know which binary is this one
    monkeypatch.setenv("NIGHTJAR_STORE", str(store))
    flags = shipped_speech(tmp_path / "speech", calibration=2, evaluation=2)
    spoken = str(next((tmp_path / "speech").rglob("*.flac")))
    few = ["--calibration-samples", "2", *flags[:2]]
    assert main(["transcribe", spoken, "--precision", "int8", "--board", "loop", *few]) == 0
    harvested = {path.parent.name for path in store.glob("calibrate/*/calibration.json")}
    (binary,) = [
        path for path in store.glob("build/*") if json.loads((path / "binary.json").read_text())["precision"] == "fp"
    ]
    demo = executable(tmp_path / "whisper_demo", DEMO)
    model = json.loads((binary / "model.json").read_text())
    texts = {token: base64.b64encode(text).decode() for token, text in token_bytes(model).items()}
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "texts.json").write_text(json.dumps(texts))
    for path in binary.iterdir():
        (tmp_path / "binary" / path.name).write_bytes(path.read_bytes())
    files = sorted((tmp_path / "binary").iterdir())
    command = f"{demo} {{binary}} {{language}} {{clip}}"
    code, results = evaluated(tmp_path, *files, "--target", "rknn", "--board", "loop", "--program", command, *flags[2:])
    assert code == 1, "agreement of tokens cannot be measured, so it is undecided"
    assert (results["tier"], results["verdict"], results["aside"]) == ("device", "UNDECIDED", {})
    assert results["wer"] == results["wer_float"]
    assert results["clips"] == 3
    assert 0 < results["rtf"]["total"]["p50"] < 1
    assert {gate["name"]: gate["outcome"] for gate in results["gates"]}["silence"] == "PASS"

    # Its dumps, as nightjar's own harvest over ssh.
    toml = tmp_path / "boards.toml"
    words = json.dumps([str(demo), str(tmp_path / "binary"), "{language}", "{clip}"])
    loop.boards(toml, more=f'[loop.program]\ncommand = {words}\ndumps = "enc_*.bin"\n')
    written = tmp_path / "imported.json"
    capsys.readouterr()
    asked = ["calibrate", "import-dumps", "--board", "loop", "--program", "declared", *few, "--json", str(written)]
    assert main(asked) == 0
    imported = json.loads(written.read_text())
    assert Path(imported["calibration"]).name in harvested, "the same content has the same key"
    assert imported["samples"]["encoder"] == 2
    again = main(asked)
    assert again == 0
    assert "dump_program               cached" in capsys.readouterr().out


def test_every_way_to_fail_is_told_apart_and_the_rest_is_scored(
    loop: Loopback, random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {f"good-{number}": "stop the light" for number in range(3)} | {"colours": "red", "miscounts": "blue"}
    bad = ("hangs", "crashes", "gives-up", "floods", "is-silent", "babbles", "rambles")
    speech = write_speech(tmp_path / "speech", good | dict.fromkeys(bad, "go"), speaker="bob")
    (tmp_path / "texts.json").write_text(json.dumps(good | dict.fromkeys(bad, "go")))
    demo = executable(tmp_path / "whisper demo", TABLE)
    model = ["--model", "random", "--checkpoint", random_checkpoint, "--test-set", speech, "--target", "rknn"]
    command = f"'{demo}' '{tmp_path}/texts.json' {{clip}}"
    code, results = evaluated(tmp_path, *model, "--board", "loop", "--program", command, "--program-timeout-s", "4")
    assert code == 1
    assert results["wer"] == 0, "what it understood, it understood"
    assert results["clips"] == 5
    assert results["verdict"] == "FAIL"
    aside = results["aside"]
    assert aside.keys() == set(bad)
    for clip, why in {
        "hangs": "it did not end within 4 s and was ended",
        "crashes": "it was killed by SIGSEGV: E RKNN: [/red][E] rknn_init fail! ret=-6",
        "gives-up": "it ended with status 1: cannot open model",
        "floods": "it printed without end and was ended after 16 MiB",
        "is-silent": "it printed nothing",
        "babbles": "it printed no text that can be read; the whole output of rknn_whisper_demo is wanted",
    }.items():
        assert aside[clip] == why
    assert "characters" in aside["rambles"]
    gate = next(gate for gate in results["gates"] if gate["name"] == "aside")
    assert gate["outcome"] == "FAIL"
    said = capsys.readouterr().out
    assert "7 clips were excluded" in said
    assert "[/red][E] rknn_init" in said, "a board's words are no markup"
    assert main(["reproduce", results["report"]]) == 0
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"left-{tmp_path}" not in left, "what a hung program started is still there"
    assert not list((loop.scratch / "jobs").iterdir())


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("nightjar: ")
    assert "\n" not in error
    return error


def test_what_cannot_be_run_is_said_before_anything_runs(
    loop: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "--target", "rknn", "--board", "loop"]
    assert "no program ./whisper_demo" in refused(capsys, 3, *asked, "--program", "./whisper_demo {clip}")
    assert "no program nowhere" in refused(capsys, 3, *asked, "--program", "nowhere {clip}", "--program-cwd", tmp_path)
    assert "it needs {clip}" in refused(capsys, 2, *asked, "--program", "./whisper_demo clip.wav")
    assert "{clip}" in refused(capsys, 2, *asked, "--program", "./whisper_demo {clip} {password}")
    assert "is not a command line" in refused(capsys, 2, *asked, "--program", "./whisper_demo '{clip}")
    assert "[loop.program]" in refused(capsys, 2, *asked, "--program", "declared")
    assert "absolute path" in refused(capsys, 2, *asked, "--program", "a {clip}", "--program-cwd", "here")
    assert "nothing to evaluate" in refused(capsys, 2, *asked)
    assert "one of the two" in refused(capsys, 2, "calibrate", "import-dumps")
    loop.boards(tmp_path / "boards.toml", more='[loop.program]\ncommand = "rm -rf /"\n')
    assert "board loop" in refused(capsys, 2, *asked, "--program", "declared")


@pytest.fixture
def board(loop: Loopback) -> Iterator[SshBoard]:
    with SshBoard(find_board("loop")) as opened:
        yield opened


def test_words_are_words_and_no_shell_sees_them(board: SshBoard, loop: Loopback, tmp_path: Path) -> None:
    demo = executable(tmp_path / "says", f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[1:]))\n")
    speech = load_speech(write_speech(tmp_path / "speech", {"$(touch x) 'a' {language}": "red"}))
    hostile = ["$(touch x)", "a b", "'", "{clip}{clip}", "*", "é\\"]
    program = BoardProgram(command=(str(demo), *hostile, "{language}"))
    (said,) = run_program(
        board, program, {clip.id: clip.audio for clip in speech}, tmp_path / "job", language="{clip}"
    ).values()
    *words, twice, star, slash, language = [*json.loads(said.stdout)]
    assert words == hostile[:3]
    assert (star, slash, language) == ("*", "é\\", "{clip}")
    assert twice.count(".wav") == 2
    assert not list(loop.folder.rglob("x"))


def test_a_program_that_can_do_nothing_is_not_asked_for_a_thousand_clips(board: SshBoard, tmp_path: Path) -> None:
    counted = tmp_path / "count"
    demo = executable(tmp_path / "fails", f"#!/bin/sh\necho >> '{counted}'\necho no licence >&2\nexit 3\n")
    speech = load_speech(write_speech(tmp_path / "speech", {f"c{number:02d}": "red" for number in range(20)}))
    clips = {clip.id: clip.audio for clip in speech}
    with pytest.raises(
        SessionFailed, match=r"failed on each of 5 clips, first c00: it ended with status 3: no licence"
    ):
        run_program(board, BoardProgram(command=(str(demo), "{clip}")), clips, tmp_path / "job", language="en")
    assert len(counted.read_text()) < 10


def test_dumps_go_to_their_clips_and_wrong_ones_are_set_aside(
    loop: Loopback, random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("fine", "none", "two", "short", "stale")
    speech = write_speech(tmp_path / "speech", dict.fromkeys(names, "red"))
    source = f"""#!{sys.executable}
import pathlib, sys
clip, here = pathlib.Path(sys.argv[1]).stem, pathlib.Path("out")
number = float(len(clip))
data = __import__("array").array("f", [number] * (500 * 32)).tobytes()
if clip != "none" and clip != "stale":
    (here / "enc_000007.bin").write_bytes(data[:-4] if clip == "short" else data)
if clip == "two":
    (here / "enc_000008.bin").write_bytes(data)
"""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "enc_000001.bin").write_bytes(b"of yesterday")
    demo = executable(tmp_path / "dumps", source)
    written = tmp_path / "i.json"
    asked = [
        "calibrate",
        "import-dumps",
        "--board",
        "loop",
        "--model",
        "random",
        "--checkpoint",
        str(random_checkpoint),
    ]
    asked += ["--calibration-set", str(speech), "--program", f"{demo} {{clip}}", "--program-cwd", str(tmp_path)]
    assert main([*asked, "--dumps", "out/enc_*.bin", "--json", str(written)]) == 0
    results = json.loads(written.read_text())
    assert results["samples"]["encoder"] == 1
    assert results["aside"]["two"] == "it wrote 2 files out/enc_*.bin (enc_000007.bin, enc_000008.bin), one is wanted"
    assert results["aside"]["short"] == "its enc_000007.bin has 63996 bytes, 64000 are expected"
    assert results["aside"]["none"] == results["aside"]["stale"] == "it wrote 0 files out/enc_*.bin, one is wanted"
    assert "excluded two" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["enc_000001.bin"]
    line = refused(capsys, 4, *asked, "--dumps", "elsewhere/*.bin")
    assert "left no dump of any of 5 clips" in line
    assert "--dumps" in line


def test_a_host_that_is_killed_leaves_no_program_running_and_goes_on_behind_what_was_heard(
    board: SshBoard, loop: Loopback, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    first = f'[ -e "{tmp_path}/go" ] || [ $(wc -l < "{pids}") = 1 ]'
    source = f'#!/bin/sh\necho $$ >> "{pids}"\necho said\n{first} || sleep 600\n'
    demo = executable(tmp_path / "slow", source)
    speech = load_speech(write_speech(tmp_path / "speech", {"a": "red", "b": "red"}))
    program = BoardProgram(command=(str(demo), "{clip}"))
    arguments = f"Path({str(tmp_path / 'job')!r}), language='en'"
    code = (
        "from pathlib import Path\nfrom nightjar.boards.config import find_board\n"
        "from nightjar.sessions.board_program import *\n"
        "from nightjar.boards.ssh import SshBoard\nboard = SshBoard(find_board('loop'))\n"
        f"clips = {{name: Path(path) for name, path in {[(c.id, str(c.audio)) for c in speech]!r}}}\n"
        f"run_program(board, BoardProgram(command=({str(demo)!r}, '{{clip}}')), clips, {arguments})\n"
    )
    host = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < end
        assert host.poll() is None
        time.sleep(0.05)
    host.send_signal(signal.SIGKILL)
    host.wait()
    running = int(pids.read_text().split()[1])
    while Path(f"/proc/{running}").exists():
        assert time.monotonic() < end, "the board's program outlived us"
        time.sleep(0.05)
    (tmp_path / "go").touch()
    said = run_program(board, program, {clip.id: clip.audio for clip in speech}, tmp_path / "job", language="en")
    assert [one.stdout for one in said.values()] == ["said\n", "said\n"]
    assert len(pids.read_text().split()) == 3, "the finished clip was run again"
