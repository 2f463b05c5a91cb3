"""The board's end of every connection, sent as source and installed nowhere; standard library only.

The host starts it with one fixed line of shell and says everything else in frames (frames.py), so no path or name of
anybody's ever meets a shell. The connection closed, or nothing heard for a minute: the command and all that it started
are killed, and a lock is let go.
"""

from __future__ import annotations  # boards have older Pythons

import contextlib
import fcntl
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

from nightjar.device.file_cache import FileCache
from nightjar.device.framing import CHUNK, LOST_S, READY, Stop, answer, heard, request, say
from nightjar.device.health import facts, health


def serve_files(asked: dict[str, Any]) -> None:
    """Answer about files until the host is gone."""
    files = FileCache(Path(asked["scratch"]).expanduser(), asked["cache_bytes"])
    answer(scratch=str(files.scratch))
    while True:
        asked = request()
        try:
            if asked["do"] == "offer":
                answer(files=[files.offered(entry) for entry in asked["files"]])
            elif asked["do"] == "take":
                files.take(asked)
                answer(ok=True)
            elif asked["do"] == "give":
                files.give(asked["path"], asked["offset"], asked["prefix"])
            elif asked["do"] == "drop":
                files.drop(asked["paths"])
                answer(ok=True)
            elif asked["do"] == "remove":
                files.remove(asked["path"])
                files.tidy()
                answer(ok=True)
        except (OSError, ValueError, KeyError) as error:
            answer(error=f"{type(error).__name__}: {error}")


def serve_facts(asked: dict[str, Any]) -> None:
    """Answer what this board is and how it does."""
    scratch = Path(asked["scratch"]).expanduser()
    scratch.mkdir(0o700, parents=True, exist_ok=True)
    answer(facts=facts(asked["runtimes"], asked["probe"]), health=health(scratch), holder=holder_of(asked["lock"]))


def serve_command(asked: dict[str, Any]) -> None:
    """Run a command in a process group of its own, pass on what it prints, and kill all of it when the host is gone."""
    child = subprocess.Popen(
        asked["command"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

    def kill(*_: Any) -> None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)

    def lost(*_: Any) -> None:
        kill()
        os._exit(1)

    for number in (signal.SIGALRM, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lost)
    assert child.stdout is not None
    assert child.stderr is not None
    pipes = {child.stdout.fileno(): b"O", child.stderr.fileno(): b"E"}
    try:
        while pipes:
            for ready in select.select([0, *pipes], [], [])[0]:
                if ready == 0:
                    frame = heard()
                    if frame is not None and frame[0] == b"K":
                        kill()
                    continue
                data = os.read(ready, CHUNK)
                if data:
                    say(pipes[ready], data)
                else:
                    del pipes[ready]
        status = child.wait()
    finally:
        kill()
    answer(status=status)


def serve_lease(asked: dict[str, Any]) -> None:
    """Hold the board's lock until the host is gone; say who else holds it while waiting."""
    lock = lock_file(asked["lock"])
    said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if not said:
                answer(held=False, by=holder_of(asked["lock"]))
                said = True
        heard(0.3)
    os.ftruncate(lock, 0)
    os.pwrite(lock, asked["holder"].encode(), 0)
    answer(held=True)
    while True:
        heard()


def lock_file(path: str) -> int:
    """Open the file that a board's only user holds locked, made where there is none."""
    # Every account of the board shares it. Linux refuses O_CREAT on another's file in /tmp, so it is opened first.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(path, flags)
    except FileNotFoundError:
        lock = os.open(path, flags | os.O_CREAT, 0o666)
    with contextlib.suppress(OSError):
        os.fchmod(lock, 0o666)
    return lock


def holder_of(path: str) -> str:
    """Return what the holder of the lock wrote into it, empty when nobody holds it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except OSError:
        return os.pread(lock, 500, 0).decode("utf-8", "replace") or "somebody"
    finally:
        os.close(lock)


SERVE = {"files": serve_files, "facts": serve_facts, "command": serve_command, "lease": serve_lease}


def main() -> None:
    """Serve what the first frame asks for; an error is an answer."""
    signal.alarm(LOST_S)
    with contextlib.suppress(Stop):
        os.write(1, READY)
        asked = request()
        try:
            SERVE[asked["serve"]](asked)
        except Stop:
            raise
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
