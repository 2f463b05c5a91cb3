"""A session on the local board: the zipapp alone, killed and gone on from, hung, crashed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from models.whisper.export import export
from nightjar.boards.board import LocalBoard
from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.errors import SessionFailed
from nightjar.plugins.recipe import Recipe
from nightjar.scoring.score import score
from nightjar.sessions.run import pack_session, run_session, session_modules
from nightjar.speech.manifest import Clip, load_speech
from targets.onnx import compile
from targets.onnx.options import Options
from tests.loopback import Loopback


@pytest.fixture(scope="module")
def binary(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs, out = tmp_path_factory.mktemp("graphs"), tmp_path_factory.mktemp("binary")
    export(random_checkpoint, Recipe(window_s=5), graphs)
    compile(graphs, None, Options(precision="fp"), out)
    return out


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for number in range(12):
        soundfile.write(folder / f"c{number:02d}.wav", (rng.standard_normal(16000) * 900).astype(np.int16), 16000)
    return load_speech(folder, transcribed=False)


def kept_lines(texts: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """Read what a session kept on its board, without the checksums."""
    return [{key: value for key, value in json.loads(text).items() if key != "crc"} for text in texts]


def run(binary: Path, clips: list[Clip], folder: Path, **settings: Any) -> list[dict[str, Any]]:
    return run_session(LocalBoard(), binary, clips, folder, decode=True, **settings)


def test_the_zipapp_is_the_same_bytes_and_holds_only_what_the_board_has(binary: Path) -> None:
    described = [json.loads((binary / name).read_text()) for name in ("model.json", "binary.json")]
    modules = session_modules(described[0], described[1]["parts"])
    packed = pack_session(modules)
    assert packed == pack_session(modules)
    sources = {
        name: zipfile.ZipFile(BytesIO(packed)).read(name).decode()
        for name in zipfile.ZipFile(BytesIO(packed)).namelist()
    }
    assert {"nightjar/device/session.py", "models/whisper/decode.py", "targets/onnx/runner.py"} <= sources.keys()
    assert not [name for name, source in sources.items() if "import pydantic" in source or "from pydantic" in source]


def test_the_zipapp_runs_where_nothing_of_ours_is_on_the_path(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    run(binary, clips[:1], tmp_path / "job")
    (tmp_path / "job" / "lines.jsonl").unlink()
    done = subprocess.run(
        [sys.executable, "-I", "session.pyz", "."], cwd=tmp_path / "job", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("id") for line in lines if "begin" not in line] == [clips[0].id, None]
    assert lines[-1]["end"] == 1


def test_lines_say_what_a_score_needs(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    lines = run(binary, clips[:2], tmp_path / "job", forced={clips[0].id: [50, 60]})
    first, second = lines
    assert [first["id"], second["id"]] == [clips[0].id, clips[1].id]
    assert first["audio_s"] == 1.0
    assert first["seconds"].keys() >= {"features", "encoder", "cross", "decoder", "total"}
    assert first["seconds"]["total"] >= first["seconds"]["encoder"] > 0
    assert first["agree"][1] == 3
    assert second["agree"] is None


def test_a_harvest_keeps_float16_hidden_states_and_decodes_nothing(
    binary: Path, clips: list[Clip], tmp_path: Path
) -> None:
    lines = run_session(LocalBoard(), binary, clips[:2], tmp_path / "job", decode=False, harvest=["hidden"])
    assert "tokens" not in lines[0]
    hidden = np.load(tmp_path / "job" / "harvest" / f"{clips[0].id}.hidden.npy")
    assert hidden.dtype == np.float16
    assert hidden.shape == (250, 32)


def test_a_killed_session_goes_on_and_computes_no_clip_twice(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    run(binary, clips, tmp_path / "whole")
    expected = [json.loads(line) for line in (tmp_path / "whole" / "lines.jsonl").read_text().splitlines()]
    folder = tmp_path / "job"
    run(binary, clips, folder)
    lines = (folder / "lines.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "lines.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed in the middle of a line
    kept = kept_lines(lines[:5])
    (folder / "finished.jsonl").unlink()  # and the host before it wrote down any
    again = run(binary, clips, folder)
    by_id = {line["id"]: line for line in again}
    assert all(by_id[line["id"]] == line for line in kept)
    assert [line["tokens"] for line in again] == [line["tokens"] for line in expected]


def test_two_sessions_never_work_in_one_folder(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    run(binary, clips, tmp_path / "job")
    (tmp_path / "job" / "lines.jsonl").unlink()
    command = [sys.executable, str(tmp_path / "job" / "session.pyz"), str(tmp_path / "job")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len((tmp_path / "job" / "lines.jsonl").read_text().splitlines()) == len(clips)
    for output in outputs:
        lines = [json.loads(line) for line in output.splitlines()]
        assert [line["id"] for line in lines if "id" in line] == [clip.id for clip in clips]
    assert sum('"begin"' in output for output in outputs) == 1, "both have computed"


def test_workers_hear_what_one_hears(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    alone = run(binary, clips, tmp_path / "alone")
    board = LocalBoard(workers=3)
    shared = run_session(board, binary, clips, tmp_path / "job", decode=True)
    assert [line["tokens"] for line in shared] == [line["tokens"] for line in alone]
    kept = (tmp_path / "job" / "lines.jsonl").read_text().splitlines()
    (tmp_path / "job" / "lines.jsonl").write_text("\n".join(kept[:7]) + "\n")  # killed there
    (tmp_path / "job" / "finished.jsonl").unlink()
    again = run_session(board, binary, clips, tmp_path / "job", decode=True)
    by_id = {line["id"]: line for line in again}
    assert all(by_id[line["id"]] == line for line in kept_lines(kept[:7]))
    assert by_id.keys() == {clip.id for clip in clips}


def test_a_workers_last_word_is_the_sessions(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    broken = tmp_path / "binary"
    broken.mkdir()
    for path in binary.iterdir():
        (broken / path.name).write_bytes(path.read_bytes() if path.name != "encoder.onnx" else b"no graph")
    with pytest.raises(SessionFailed, match=r"cannot load .*encoder\.onnx"):
        run_session(LocalBoard(workers=2), broken, clips, tmp_path / "job", decode=True)


def test_what_holds_the_processor_back_is_in_the_lines_and_in_the_score(
    binary: Path, clips: list[Clip], tmp_path: Path
) -> None:
    run(binary, clips[:3], tmp_path / "job")
    (tmp_path / "job" / "lines.jsonl").unlink()
    said_clips = [clip.model_copy(update={"text": "x"}) for clip in clips[:3]]
    device = tmp_path / "sys/class/thermal/cooling_device0"
    device.mkdir(parents=True)
    for name, text in (("type", "cpufreq-cpu0"), ("cur_state", "2"), ("max_state", "7")):
        (device / name).write_text(f"{text}\n")
    fan = shutil.copytree(device, device.with_name("cooling_device1"))
    (fan / "type").write_text("pwm-fan\n")

    # In a process of its own, as onnxruntime's one pool of threads is a process's for good.
    told = "import nightjar.device.health\n"
    told += f"nightjar.device.health.SYS = __import__('pathlib').Path({str(tmp_path / 'sys')!r})\n"
    told += f"from nightjar.device.session import main\nmain({str(tmp_path / 'job')!r})"

    def throttled() -> dict[str, int]:
        said = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout
        lines = [line for text in said.splitlines() if "id" in (line := json.loads(text))]
        (tmp_path / "job" / "lines.jsonl").unlink()
        return score("binary", "device", said_clips, [{**line, "text": "x"} for line in lines]).throttled

    assert throttled() == {"cpufreq-cpu0 cooled, step 2 of 7": 3}
    (device / "cur_state").write_text("0\n")  # the fan goes on
    assert throttled() == {}
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy4"
    policy.mkdir(parents=True)
    (policy / "cpuinfo_max_freq").write_text("2400000\n")
    (policy / "scaling_max_freq").write_text("1200000\n")
    assert throttled() == {"policy4 capped at 1200 of 2400 MHz": 3}


def test_what_a_worker_died_of_is_the_last_word_and_not_that_the_others_lost_their_pipe(
    binary: Path, clips: list[Clip], tmp_path: Path
) -> None:
    run(binary, clips[:2], tmp_path / "job")
    (tmp_path / "job" / "lines.jsonl").unlink()
    job = json.loads((tmp_path / "job" / "job.json").read_text())
    (tmp_path / "job" / "job.json").write_text(json.dumps(job | {"workers": 2}))
    told = "import os, sys, time, targets.onnx.runner as runner\nopening, parent = runner.open_runner, os.getpid()\n"
    told += (
        f"def first(*a, **k):\n    try:\n        os.mkdir({str(tmp_path / 'taken')!r})\n    except FileExistsError:\n"
    )
    told += "        time.sleep(0.5)\n        return opening(*a, **k)\n    raise RuntimeError('no such chip')\n"
    told += "runner.open_runner = first\n"
    told += f"from nightjar.device.session import main\nstatus = main({str(tmp_path / 'job')!r})\n"
    told += "time.sleep(1.5)\nsys.exit(status)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "RuntimeError: RuntimeError: no such chip"


def test_a_runtime_that_turns_stdout_away_takes_no_line_with_it(
    binary: Path, clips: list[Clip], tmp_path: Path
) -> None:
    """rknn-toolkit2's output is kept off stdout while it works, and another thread says a line meanwhile."""
    run(binary, clips[:1], tmp_path / "job")
    (tmp_path / "job" / "lines.jsonl").unlink()
    told = "import os, targets.onnx.runner as runner\nopening = runner.open_runner\n"
    told += "def turned(*a, **k):\n    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n    return opening(*a, **k)\n"
    told += "runner.open_runner = turned\n"
    told += f"from nightjar.device.session import main\nmain({str(tmp_path / 'job')!r})"
    said = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout
    assert [line["id"] for text in said.splitlines() if "id" in (line := json.loads(text))] == [clips[0].id]
    assert "end" in json.loads(said.splitlines()[-1])


def test_another_binary_lends_its_encoder(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    deaf.mkdir()
    for path in binary.iterdir():
        (deaf / path.name).write_bytes(path.read_bytes() if path.name != "encoder.onnx" else b"no graph")
    lent = run_session(LocalBoard(), deaf, clips[:2], tmp_path / "job", decode=True, encoder=binary)
    own = run_session(LocalBoard(), binary, clips[:2], tmp_path / "own", decode=True)
    assert [line["tokens"] for line in lent] == [line["tokens"] for line in own]


def test_a_crash_is_one_line_with_the_sessions_last_word(binary: Path, clips: list[Clip], tmp_path: Path) -> None:
    broken = tmp_path / "binary"
    broken.mkdir()
    for path in binary.iterdir():
        (broken / path.name).write_bytes(path.read_bytes() if path.suffix != ".onnx" else b"no graph")
    with pytest.raises(SessionFailed, match="cannot load") as failed:
        run(broken, clips, tmp_path / "job")
    assert "\n" not in str(failed.value)


def test_a_silent_command_is_ended_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(SessionFailed, match="printed nothing for 1 s"):
        list(
            LocalBoard().stream(
                [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], 1.0, print
            )
        )
    assert time.monotonic() - started < 20


def test_leaving_the_lines_ends_the_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); print('on', flush=True); time.sleep(60)"
    )
    lines = LocalBoard().stream([sys.executable, "-c", code, str(pid_file)], 30.0, print)
    assert next(lines) == "on"
    lines.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGCONT)


def test_a_session_by_ssh_is_the_local_one_and_goes_on_where_it_ended(
    binary: Path, clips: list[Clip], tmp_path: Path, loop: Loopback
) -> None:
    local = run_session(LocalBoard(), binary, clips, tmp_path / "local", decode=True, harvest=["hidden"])
    board = SshBoard(find_board("loop"))
    whole = run_session(board, binary, clips, tmp_path / "job", decode=True, harvest=["hidden"])
    first_bytes = board.moved_bytes
    assert [line["tokens"] for line in whole] == [line["tokens"] for line in local]
    harvested = sorted((tmp_path / "local" / "harvest").iterdir())
    assert len(harvested) == len(clips)
    for path in harvested:
        assert (tmp_path / "job" / "harvest" / path.name).read_bytes() == path.read_bytes()
    assert not list((loop.scratch / "jobs").iterdir()), "a finished job stays behind"
    journal = tmp_path / "job" / "finished.jsonl"
    kept = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(kept[:7]) + kept[7][:20])  # the host was killed there
    again = run_session(board, binary, clips, tmp_path / "job", decode=True, harvest=["hidden"])
    by_id = {line["id"]: line for line in again}
    assert all(by_id[json.loads(entry)["line"]["id"]] == json.loads(entry)["line"] for entry in kept[:7])
    assert [line["tokens"] for line in again] == [line["tokens"] for line in local]
    moved = board.moved_bytes - first_bytes - 5 * harvested[0].stat().st_size
    assert moved < 30_000, "what the board or the host has was sent again"  # the new job.json
    assert not list((loop.scratch / "jobs").iterdir()), "a finished job stays behind"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "../../../etc/passwd", "audio_s": 1, "seconds": {}, "tokens": [], "steps": 1, "capped": false, '
         '"agree": null}', "unknown clip id"),
        ('{"id": "c00", "audio_s": 1, "seconds": {}, "tokens": ["x"], "steps": 1, "capped": false, "agree": null}',
         "invalid result line"),
        ('{"id": "c00"}', "invalid result line"),
        ('{"id": "c00", "audio_s": NaN, "seconds": {}, "tokens": [], "steps": 1, "capped": false, "agree": null}',
         "invalid result line"),
        ("[" * 100_000, "gave no result for"),
        ("[1]", "gave no result for"),
        ('{"begin": [{}]}', "gave no result for"),
        ('{"full": ["\\u001b[2J"]}', "the disk of board local is full"),
        ('{"paused": "x"}', "gave no result for"),
    ],
)  # fmt: skip
def test_a_line_that_no_session_writes_is_refused(
    binary: Path, clips: list[Clip], tmp_path: Path, line: str, said: str
) -> None:
    class Hostile(LocalBoard):
        def stream(self, command: list[str], silence_s: float, log: Any) -> Any:
            yield line

    with pytest.raises(SessionFailed, match=said) as failed:
        run_session(Hostile(), binary, clips, tmp_path / "job", decode=True)
    assert "\n" not in str(failed.value)
