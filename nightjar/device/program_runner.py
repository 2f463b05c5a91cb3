"""Run a board's own program on clips, one after the other, within limits; sent to boards, standard library only.

    python3 clipwise.py JOB_FOLDER

`job.json` there has a command per clip, an argument list. One JSON line per clip says how the command ended, on stdout
and in `lines.jsonl`, so that a run that was killed continues behind its last line. A program that hangs or prints
too much is killed with all that it started. A file that it dumps is moved to `dumps/CLIP.bin`, so that no dump can be
taken for another clip's.
"""

from __future__ import annotations  # boards have older Pythons

import contextlib
import glob
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TAIL_BYTES = 1 << 17  # the end of a program's output on one clip, which has the text
OUTPUT_BYTES = 1 << 24  # a program that prints more than this never stops
STDERR_BYTES = 1 << 11


def main(folder: Path) -> int:
    """Run the clips without a result; print the results that exist first."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    guard = _start_guard()
    with (folder / "lines.jsonl").open("a+b") as file:
        file.seek(0)
        earlier = file.read()
        whole = earlier[: earlier.rfind(b"\n") + 1]
        file.truncate(len(whole))  # without a half-written last line
        done = {json.loads(text)["id"] for text in whole.splitlines()}
        print(whole.decode(), end="", flush=True)
        for clip in job["clips"]:
            if clip["id"] not in done:
                text = json.dumps(run_clip(job, clip, folder, guard)) + "\n"
                file.write(text.encode())
                file.flush()
                print(text, end="", flush=True)
    return 0


def describe(command: list[str], cwd: str) -> dict[str, str]:
    """Return the sha256 of a program and of the files among its arguments; empty where there is no such program."""
    import hashlib

    folder = Path(cwd or "/").expanduser()
    found = {}
    for number, word in enumerate(command):
        path = Path(word) if number or "/" in word else Path(shutil.which(word) or "/no such program")
        path = folder / path
        if (path.is_file() and os.access(str(path), os.R_OK)) and (number or os.access(str(path), os.X_OK)):
            hashed = hashlib.sha256()
            with path.open("rb") as file:
                for data in iter(lambda: file.read(1 << 20), b""):
                    hashed.update(data)
            found[word] = hashed.hexdigest()
        elif not number:
            return {}
    return found


def run_clip(job: dict[str, Any], clip: dict[str, Any], folder: Path, guard: int) -> dict[str, Any]:
    """Run one clip's command; return how it ended, the end of its output and its dumps."""
    cwd = Path(job["cwd"]).expanduser() if job["cwd"] else folder / "own"
    if not job["cwd"]:
        shutil.rmtree(str(cwd), ignore_errors=True)
        cwd.mkdir()
    pattern = str(Path(glob.escape(str(cwd))) / job["dumps"]) if job["dumps"] else ""
    before = _list_files(pattern)
    result = run(clip["command"], str(cwd), job["timeout_s"], guard)
    after = _list_files(pattern)
    written = sorted(path for path in after if before.get(path) != after[path])
    for number, path in enumerate(written):
        if number:  # several cannot be told apart, and would fill the disk
            Path(path).unlink()
        else:
            (folder / "dumps").mkdir(exist_ok=True)
            shutil.move(path, str(folder / "dumps" / (clip["id"] + ".bin")))
    return {"id": clip["id"], **result, "dumps": [[Path(path).name, after[path][0]] for path in written[:10]]}


def run(command: list[str], cwd: str, timeout_s: float, guard: int) -> dict[str, Any]:
    """Run a command to its end, or kill it when it takes too long or prints too much."""
    began = time.monotonic()
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(os.environ, TERM="dumb", NO_COLOR="1"),
        )
    except (OSError, ValueError) as error:
        return _outcome("unstarted", 0, 0.0, b"", str(error).encode(), 0)
    os.write(guard, b"%d\n" % child.pid)
    assert child.stdout is not None
    assert child.stderr is not None
    tails = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    pipes, printed, end, ended = set(tails), 0, began + timeout_s, "itself"
    while pipes and ended == "itself":
        exited = child.poll() is not None  # checked before reading, so that its last output is not missed
        ready = select.select(list(pipes), [], [], 0 if exited else max(0.0, min(0.5, end - time.monotonic())))[0]
        for pipe in ready:
            data = os.read(pipe, 1 << 16)
            printed += len(data)
            tails[pipe] += data
            del tails[pipe][:-TAIL_BYTES]
            if not data:
                pipes.discard(pipe)
        if printed > OUTPUT_BYTES:
            ended = "flood"
        elif time.monotonic() > end:
            ended = "late"
        elif exited and not ready:  # a process that it started has the pipes
            break
    if ended == "itself":
        try:
            child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            ended = "late"
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    os.write(guard, b"0\n")
    seconds = time.monotonic() - began
    out, err = (bytes(text) for text in tails.values())
    for stream in (child.stdout, child.stderr):
        stream.close()
    return _outcome(ended, status, seconds, out, err, printed)


def _outcome(ended: str, status: int, seconds: float, out: bytes, err: bytes, printed: int) -> dict[str, Any]:
    return {
        "ended": ended,
        "status": status,
        "seconds": round(seconds, 5),
        "printed": printed,
        "stdout": out.decode("utf-8", "replace"),
        "stderr": err[-STDERR_BYTES:].decode("utf-8", "replace"),
    }


def _start_guard() -> int:
    """Fork a process that kills the program when this one is killed; return the pipe for the program's pid."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return writing
    os.setsid()
    os.close(writing)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # the agent waits until these are closed
        os.dup2(null, number)
    last = b"0"
    for data in iter(lambda: os.read(reading, 4096), b""):
        last = data.split(b"\n")[-2]
    if int(last):
        with contextlib.suppress(OSError):
            os.killpg(int(last), signal.SIGKILL)
    os._exit(0)


def _list_files(pattern: str) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in glob.glob(pattern) if pattern else []:  # noqa: PTH207 (the pattern may be absolute)
        status = Path(path).lstat()
        if stat.S_ISREG(status.st_mode):
            found[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "describe":
        print(json.dumps(describe(json.loads(sys.argv[2]), sys.argv[3])))
    else:
        sys.exit(main(Path(sys.argv[1])))
