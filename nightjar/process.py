"""Run commands in process groups of their own, and log the output of vendors' tools."""

import contextlib
import contextvars
import getpass
import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Protocol, TypeVar

import psutil

log = logging.getLogger(__name__)

LINE_END = re.compile(rb"[\r\n]")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"^(?:[DIWE] )?(\w[\w .]*?)\s*:\s*\d+%\|.*?\|\s*(\d+)/(\d+)")  # tqdm's
MEMORY_CHECK_S = 1.0

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]  # of a tool's progress bar: its name, done, total

_started: ContextVar[list[int] | None] = ContextVar("started", default=None)  # process groups of parallel calls


class GroupLeader(Protocol):
    """A process that leads a group: a subprocess.Popen with pipes, or what is like it."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired."""


class MemoryLimitExceeded(Exception):
    """A command used more memory than its limit: bytes used, bytes allowed."""


def run_logged(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path,
    log_file: Path,
    timeout_s: float,
    on_progress: Progress | None = None,
    memory_limit_bytes: int | None = None,
) -> int | None:
    """Run a command in its own process group; write its cleaned output to a file and to this module's log.

    Return its exit status, or None after `timeout_s`. The group is killed in every case. Raises MemoryLimitExceeded
    when all its processes together use more than `memory_limit_bytes`.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return watch(process, log_file, timeout_s, on_progress, memory_limit_bytes)


def watch(
    process: GroupLeader,
    log_file: Path,
    timeout_s: float,
    on_progress: Progress | None = None,
    memory_limit_bytes: int | None = None,
) -> int | None:
    """Log and limit a process group that is running; its output, result and end are those of run_logged."""
    if (others := _started.get()) is not None:
        others.append(process.pid)
    assert process.stdout is not None
    assert process.stdin is not None
    copy = contextvars.copy_context()  # progress goes to the caller's listener
    arguments = (_copy_output, process.stdout, log_file, on_progress)
    reader = threading.Thread(target=copy.run, args=arguments, daemon=True)
    reader.start()
    try:
        return _wait(process, timeout_s, memory_limit_bytes)
    finally:
        if others is not None:
            others.remove(process.pid)  # the system may reuse the number
        _kill(process.pid)
        process.wait()
        reader.join(timeout=10)
        process.stdin.close()
        process.stdout.close()


def _wait(process: GroupLeader, timeout_s: float, memory_limit_bytes: int | None) -> int | None:
    end = time.monotonic() + timeout_s
    while (left_s := end - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(left_s if memory_limit_bytes is None else min(MEMORY_CHECK_S, left_s))
        if memory_limit_bytes is not None and (used := group_memory_bytes(process.pid)) > memory_limit_bytes:
            raise MemoryLimitExceeded(used, memory_limit_bytes)
    return None


def group_memory_bytes(group: int) -> int:
    """Return the memory of a process group; pages that its processes share count once.

    The size of the address space does not help: TensorFlow reserves a hundred gigabytes and uses two.
    """
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is another user's
            if os.getpgid(process.pid) == group:
                total += process.memory_full_info().pss
    return total


def run_parallel(calls: Sequence[Callable[[], Result]], workers: int) -> list[Result]:
    """Make calls that run commands, at most `workers` at a time; return their results in order.

    The first failure, or an interrupt, kills the commands of the other calls and is raised.
    """
    started: list[int] = []
    token = _started.set(started)
    try:
        with ThreadPoolExecutor(workers) as pool:
            running = [pool.submit(contextvars.copy_context().run, call) for call in calls]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                begun = [call for call in running if not call.cancelled()]  # wait never returns for cancelled ones
                while wait(begun, timeout=0.1).not_done:  # a call may be about to start a command
                    for group in list(started):
                        _kill(group)
                raise
        return [done.result() for done in running]
    finally:
        _started.reset(token)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def last_line(text: str) -> str:
    """Return the most telling line of a log: the last error line, else the last line outside a traceback's frames."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E |ERROR|\w*Error: )", line) and "Traceback" not in line]
    return (errors or [line for line in lines if not line.startswith(("File ", "Traceback"))] or [""])[-1][:300]


def _copy_output(stream: IO[bytes], log_file: Path, on_progress: Progress | None) -> None:
    """Copy output without colours; progress bars go to `on_progress` instead."""
    with log_file.open("a", encoding="utf-8") as copy:
        for line in _output_lines(stream):
            text = ANSI.sub("", line).rstrip()
            if bar := BAR.match(text):
                if on_progress is not None:
                    on_progress(bar[1].strip(), int(bar[2]), int(bar[3]))
            elif text:
                print(text, file=copy, flush=True)
                log.debug("%s", text)


def _output_lines(stream: IO[bytes]) -> Iterator[str]:
    """Split a stream at line ends and carriage returns as it arrives."""
    rest = b""
    while block := os.read(stream.fileno(), 65536):
        *lines, rest = LINE_END.split(rest + block)
        yield from (line.decode(errors="replace") for line in lines)
    yield rest.decode(errors="replace")


def lock_owner() -> str:
    """Name this process for those who wait for its lock: user@host, process, since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}, since {since}"
