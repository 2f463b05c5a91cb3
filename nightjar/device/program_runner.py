"""Run a board's own program on clips, one after the other, within limits; sent to boards, standard library only.

    python3 clipwise.py JOB_FOLDER

`job.json` there says of each clip which command to run, an argument list. A JSON line per clip says how that ended, on
stdout and in `lines.jsonl`, so that a run that was killed goes on behind its last line. A program that hangs or prints
without end is ended with all that it started; what it dumped is moved to `dumps/CLIP.bin`, so that no dump can be taken
for another clip's.
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

KEPT_BYTES = 1 << 17  # of what a program prints on one clip: its end, where the text is
PRINTED_BYTES = 1 << 24  # more than this is a program that prints without end
WORD_BYTES = 1 << 11  # of stderr


def main(folder: Path) -> int:
    """Run the clips that have no line yet; print what is there first."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    guard = _start_guard()
    lines = folder / "lines.jsonl"
    done = _whole_lines(lines)
    for line in done.values():
        print(json.dumps(line), flush=True)
    with lines.open("a", encoding="utf-8") as kept:
        for clip in job["clips"]:
            if clip["id"] in done:
                continue
            text = json.dumps(run_clip(job, clip, folder, guard))
            for out in (kept, sys.stdout):
                print(text, file=out, flush=True)
    return 0


def describe(words: list[str], cwd: str) -> dict[str, str]:
    """Return the sha256 of a program and of the files that its arguments name; empty where there is no such program."""
    import hashlib

    folder = Path(cwd or "/").expanduser()
    found = {}
    for number, word in enumerate(words):
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
    """Run one clip's command; say how it ended, what it printed last and which dumps it wrote."""
    own = folder / "own"
    if not job["cwd"]:
        shutil.rmtree(str(own), ignore_errors=True)
        own.mkdir()
    cwd = Path(job["cwd"]).expanduser() if job["cwd"] else own
    pattern = str(Path(glob.escape(str(cwd))) / job["dumps"]) if job["dumps"] else ""
    before = _seen(pattern)
    line = {"id": clip["id"], **run(clip["command"], str(cwd), job["timeout_s"], guard), "dumps": []}
    after = _seen(pattern)
    written = sorted(path for path in after if before.get(path) != after[path])
    if written:
        target = folder / "dumps" / (clip["id"] + ".bin")
        target.parent.mkdir(exist_ok=True)
        shutil.move(written[0], str(target))
        for path in written[1:]:  # two belong to nobody; left there, the program would fill the disk
            Path(path).unlink()
        line["dumps"] = [[Path(path).name, after[path][0]] for path in written[:10]]
    return line


def run(words: list[str], cwd: str, timeout_s: float, guard: int) -> dict[str, Any]:
    """Run a command to its end, or end it when it takes or prints too much."""
    began = time.monotonic()
    try:
        child = subprocess.Popen(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(os.environ, TERM="dumb", NO_COLOR="1"),
        )
    except (OSError, ValueError) as error:
        return _told("unstarted", 0, 0.0, b"", str(error).encode(), 0)
    os.write(guard, b"%d\n" % child.pid)
    assert child.stdout is not None
    assert child.stderr is not None
    kept = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    pipes, printed, end, ended = set(kept), 0, began + timeout_s, "itself"
    while pipes and ended == "itself":
        over = child.poll() is not None  # looked at before reading, or its last words would be missed
        ready = select.select(list(pipes), [], [], 0 if over else max(0.0, min(0.5, end - time.monotonic())))[0]
        for pipe in ready:
            data = os.read(pipe, 1 << 16)
            printed += len(data)
            kept[pipe] += data
            del kept[pipe][:-KEPT_BYTES]
            if not data:
                pipes.discard(pipe)
        if printed > PRINTED_BYTES:
            ended = "flood"
        elif time.monotonic() > end:
            ended = "late"
        elif over and not ready:  # something it started holds the pipes
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
    out, err = (bytes(text) for text in kept.values())
    for stream in (child.stdout, child.stderr):
        stream.close()
    return _told(ended, status, seconds, out, err, printed)


def _told(ended: str, status: int, seconds: float, out: bytes, err: bytes, printed: int) -> dict[str, Any]:
    return {
        "ended": ended,
        "status": status,
        "seconds": round(seconds, 5),
        "printed": printed,
        "stdout": out.decode("utf-8", "replace"),
        "stderr": err[-WORD_BYTES:].decode("utf-8", "replace"),
    }


def _start_guard() -> int:
    """Fork what ends the program when we are killed, as whoever kills us cannot reach it; return the pipe to it."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return writing
    os.setsid()
    os.close(writing)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # the agent waits for the end of ours
        os.dup2(nothing, number)
    last = b"0"
    while True:
        data = os.read(reading, 4096)
        if not data:
            break
        last = data.split(b"\n")[-2]
    if int(last):
        with contextlib.suppress(OSError):
            os.killpg(int(last), signal.SIGKILL)
    os._exit(0)


def _seen(pattern: str) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in glob.glob(pattern) if pattern else []:  # noqa: PTH207 (the pattern may be absolute)
        about = Path(path).lstat()
        if stat.S_ISREG(about.st_mode):
            found[path] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def _whole_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of an earlier run by clip id, and cut off a half-written last one."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    return {line["id"]: line for line in map(json.loads, whole.splitlines())}


if __name__ == "__main__":
    if sys.argv[1] == "describe":
        print(json.dumps(describe(json.loads(sys.argv[2]), sys.argv[3])))
    else:
        sys.exit(main(Path(sys.argv[1])))
