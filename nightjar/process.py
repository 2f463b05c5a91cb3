"""Run a command in a process group of its own, and make a log of what vendors' tools print."""

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
from typing import IO, TypeVar

log = logging.getLogger(__name__)

LINE_END = re.compile(rb"[\r\n]")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"^(?:[DIWE] )?(\w[\w .]*?)\s*:\s*\d+%\|.*?\|\s*(\d+)/(\d+)")  # tqdm's

Result = TypeVar("Result")
_started: ContextVar[list[int] | None] = ContextVar("started", default=None)  # process groups of calls made together

MEMORY_CHECK_S = 1.0  # between looks at the memory of a command

Progress = Callable[[str, int, int], None]  # what, done, total: of the SDK's own progress bars


def run_logged(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path,
    log_file: Path,
    timeout_s: float,
    on_progress: Progress | None = None,
    memory_limit_bytes: int | None = None,
) -> int | None:
    """Run a command in a process group of its own, write its cleaned output to a file and to this module's log.

    Returns its exit status, or None when it outlived `timeout_s`. The group is killed on every way out. Raises
    Outgrown when all its processes together hold more than `memory_limit_bytes` of memory.
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
    if (others := _started.get()) is not None:
        others.append(process.pid)
    assert process.stdout is not None
    assert process.stdin is not None
    said = (_copy_output, process.stdout, log_file, on_progress)
    reader = threading.Thread(target=contextvars.copy_context().run, args=said, daemon=True)  # it ticks for the caller
    reader.start()
    try:
        return _wait(process, timeout_s, memory_limit_bytes)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if others is not None:
            others.remove(process.pid)  # its number may soon be another's
        _kill(process.pid)
        process.wait()
        reader.join(timeout=10)
        process.stdin.close()
        process.stdout.close()


class MemoryLimitExceeded(Exception):
    """A command held more memory than it was given: bytes held, bytes given."""


def _wait(process: "subprocess.Popen[bytes]", timeout_s: float, memory_limit_bytes: int | None) -> int:
    if memory_limit_bytes is None:
        return process.wait(timeout_s)
    end = time.monotonic() + timeout_s
    while True:
        try:
            return process.wait(min(MEMORY_CHECK_S, max(0.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if (held := group_memory_bytes(process.pid)) > memory_limit_bytes:
                raise MemoryLimitExceeded(held, memory_limit_bytes) from None
            if time.monotonic() >= end:
                raise


def group_memory_bytes(group: int) -> int:
    """Sum the memory of a process group, what its processes share counted once.

    An address space says nothing of it: TensorFlow reserves a hundred gigabytes and touches two.
    """
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or is somebody else's
            if int((place / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                kept = (place / "smaps_rollup").read_text()
                total += 1024 * int(next(line.split()[1] for line in kept.splitlines() if line.startswith("Pss:")))
    return total


def run_parallel(calls: Sequence[Callable[[], Result]], workers: int) -> list[Result]:
    """Make calls that run commands, some at a time, and return what they give, in order.

    The first to fail, or an interrupt, ends the commands of the others; that failure is raised.
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
                begun = [call for call in running if not call.cancelled()]  # for those, wait would wait for ever
                while wait(begun, timeout=0.1).not_done:  # one may just be starting
                    for group in list(started):
                        _kill(group)
                raise
        return [done.result() for done in running]
    finally:
        _started.reset(token)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("process group %d has ended", group)


def last_line(said: str) -> str:
    """Find the line of a log that says most: the last error line, else the last that is no traceback's."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E |ERROR|\w*Error: )", line) and "Traceback" not in line]
    return (errors or [line for line in lines if not line.startswith(("File ", "Traceback"))] or [""])[-1][:300]


def _copy_output(stream: IO[bytes], log_file: Path, on_progress: Progress | None) -> None:
    """Pass output on without colours and without progress bars, which go to `on_progress`."""
    with log_file.open("a", encoding="utf-8") as kept:
        for piece in _output_lines(stream):
            text = ANSI.sub("", piece).rstrip()
            if bar := BAR.match(text):
                if on_progress is not None:
                    on_progress(bar[1].strip(), int(bar[2]), int(bar[3]))
            elif text:
                print(text, file=kept, flush=True)
                log.debug("%s", text)


def _output_lines(stream: IO[bytes]) -> Iterator[str]:
    """Split a stream at line ends and carriage returns as they come."""
    rest = b""
    while block := os.read(stream.fileno(), 65536):
        *whole, rest = LINE_END.split(rest + block)
        yield from (piece.decode(errors="replace") for piece in whole)
    yield rest.decode(errors="replace")


def lock_owner() -> str:
    """Say who we are to those who wait: user@host, process, since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}, since {since}"
