"""The board's end of every connection, sent as source and installed nowhere; standard library only.

The host starts it with one fixed line of shell and sends everything else in frames (framing.py), so no path or name
reaches a shell. When the connection closes, or nothing arrives for a minute, the command and all that it started are
killed, and a lock ends.
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
from nightjar.device.framing import (
    CHUNK,
    LOST_S,
    READY,
    HostGone,
    receive_frame,
    receive_request,
    send_answer,
    send_frame,
)
from nightjar.device.health import facts, health


def serve_files(request: dict[str, Any]) -> None:
    """Answer requests about files until the host is gone."""
    files = FileCache(Path(request["scratch"]).expanduser(), request["cache_bytes"])
    send_answer(scratch=str(files.scratch))
    while True:
        request = receive_request()
        try:
            if request["do"] == "give":
                files.send(request["path"], request["offset"], request["prefix"])
                continue
            answer: dict[str, Any] = {"ok": True}
            if request["do"] == "offer":
                answer = {"files": [files.check_offer(entry) for entry in request["files"]]}
            elif request["do"] == "take":
                files.receive(request)
            elif request["do"] == "drop":
                files.delete(request["paths"])
            elif request["do"] == "remove":
                files.remove_folder(request["path"])
                files.remove_stale()
            send_answer(**answer)
        except (OSError, ValueError, KeyError) as error:
            send_answer(error=f"{type(error).__name__}: {error}")


def serve_facts(request: dict[str, Any]) -> None:
    """Answer with the facts and the health of this board."""
    scratch = Path(request["scratch"]).expanduser()
    scratch.mkdir(0o700, parents=True, exist_ok=True)
    found = facts(request["runtimes"], request["probe"])
    send_answer(facts=found, health=health(scratch), holder=holder_of(request["lock"]))


def serve_command(request: dict[str, Any]) -> None:
    """Run a command in its own process group, pass on its output, and kill the group when the host is gone."""
    child = subprocess.Popen(
        request["command"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

    def kill() -> None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)

    def kill_and_exit(*_: Any) -> None:
        kill()
        os._exit(1)

    for number in (signal.SIGALRM, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, kill_and_exit)
    assert child.stdout is not None
    assert child.stderr is not None
    pipes = {child.stdout.fileno(): b"O", child.stderr.fileno(): b"E"}
    try:
        while pipes:
            for ready in select.select([0, *pipes], [], [])[0]:
                if ready == 0:
                    frame = receive_frame()
                    if frame is not None and frame[0] == b"K":
                        kill()
                elif data := os.read(ready, CHUNK):
                    send_frame(pipes[ready], data)
                else:
                    del pipes[ready]
        status = child.wait()
    finally:
        kill()
    send_answer(status=status)


def serve_lock(request: dict[str, Any]) -> None:
    """Lock the board until the host is gone; while another process has the lock, say once which."""
    lock = open_lock(request["lock"])
    if not try_lock(lock, request["holder"]):
        send_answer(held=False, by=holder_of(request["lock"]))
        while not try_lock(lock, request["holder"]):
            receive_frame(0.3)
    send_answer(held=True)
    while True:
        receive_frame()


def open_lock(path: str) -> int:
    """Open a board's lock file; made where it is absent."""
    # All accounts of the board share it. Linux refuses O_CREAT on another's file in /tmp, so first without.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(path, flags)
    except FileNotFoundError:
        lock = os.open(path, flags | os.O_CREAT, 0o666)
    with contextlib.suppress(OSError):
        os.fchmod(lock, 0o666)
    return lock


def try_lock(lock: int, holder: str) -> bool:
    """Lock an open lock file and write its holder into it; return False while another process has the lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    os.ftruncate(lock, 0)
    os.pwrite(lock, holder.encode(), 0)
    return True


def holder_of(path: str) -> str:
    """Return the holder of a lock as its file names it, empty when it is free."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except OSError:
        return os.pread(lock, 500, 0).decode("utf-8", "replace") or "an unknown process"
    finally:
        os.close(lock)


SERVE = {"files": serve_files, "facts": serve_facts, "command": serve_command, "lease": serve_lock}


def main() -> None:
    """Serve the first frame's request; an error is an answer."""
    signal.alarm(LOST_S)
    with contextlib.suppress(HostGone):
        os.write(1, READY)
        request = receive_request()
        try:
            SERVE[request["serve"]](request)
        except Exception as error:
            send_answer(error=f"{type(error).__name__}: {error}")
