"""Start the processes of a toolchain by a fork of one that has imported the SDK: the import takes seconds, a fork none.

A server (worker.serve) is started for the first call and ends with this process. It gets each call's working folder and
three file descriptors, and answers on the third with the process's id and, later, its exit status.
"""

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from nightjar.errors import ToolchainFailed

CODE = (  # `-P`, no imports from the working folder, for Pythons before 3.11
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from nightjar.toolchains.worker import serve; serve(int(sys.argv[1]))"
)

_servers: dict[tuple[object, ...], "Server"] = {}
_lock = threading.Lock()


class ServerEnded(Exception):
    """The server ended before it started a call."""


class Call:
    """A process of a call, as run_logged uses a subprocess.Popen; it leads a process group of its own."""

    def __init__(self, server: "Server", arguments: Sequence[str], folder: Path, load_sdk: bool) -> None:
        self.stdin: IO[bytes] | None
        self.stdout: IO[bytes] | None
        stdin, self.stdin = _pipe()
        self.stdout, stdout = _pipe()
        self._answers, answers = _pipe()
        request = {"arguments": list(arguments), "folder": str(folder.resolve()), "load_sdk": load_sdk}
        self.pid = 0
        with contextlib.suppress(OSError):
            server.send(request, [each.fileno() for each in (stdin, stdout, answers)])
            for each in (stdin, stdout, answers):
                each.close()
            self.pid = int(self._answers.readline() or 0)
        if not self.pid:
            for each in (stdin, stdout, answers, self.stdin, self.stdout, self._answers):
                each.close()
            raise ServerEnded
        self._status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal; raises subprocess.TimeoutExpired."""
        if self._status is None:
            if timeout is not None and not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a toolchain's call", timeout)
            self._status = int(self._answers.readline() or -9)  # who would answer was killed with the call
            self._answers.close()
        return self._status


class Server:
    """A process of an environment that has its SDK imported and forks itself for each call."""

    def __init__(self, python: Path, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [str(python), "-c", CODE, str(theirs.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def send(self, request: Mapping[str, object], descriptors: list[int]) -> None:
        """Ask for a call."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)

    def close(self) -> None:
        """End the server; its calls go on."""
        self._socket.close()
        self._process.wait()


def start(python: Path, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Call:
    """Start a call in a folder: worker.main with `arguments`. A server serves calls of one environment."""
    key = (os.getpid(), python, python.parent.parent.stat().st_ino, *sorted(environment.items()))

    for load_sdk in (True, True, False):  # a server may have been killed since, or the SDK's import crashes it
        with _lock:
            server = _servers.get(key) or _servers.setdefault(key, Server(python, environment))
        try:
            return Call(server, arguments, folder, load_sdk)
        except ServerEnded:
            with _lock:
                if _servers.get(key) is server:
                    del _servers[key]
                    server.close()
    raise ToolchainFailed(f"{python} starts no process for {arguments[0]}: run the same command again, then report it")


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return os.fdopen(read, "rb", buffering=0), os.fdopen(write, "wb", buffering=0)


@atexit.register
def _close_servers() -> None:
    for (owner, *_), server in _servers.items():
        if owner == os.getpid():
            server.close()
