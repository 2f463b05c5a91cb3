"""Where a binary runs: a board runs commands, takes files and gives them back."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel

from nightjar.device.health import facts
from nightjar.errors import RunnerFailed, SessionFailed
from nightjar.store.fingerprint import version

SIMULATOR_BYTES = 3 * 2**30  # of memory: twice what whisper-tiny's three parts take


class Output(NamedTuple):
    """Exit status and text of a finished command."""

    status: int
    stdout: str
    stderr: str


class BoardFacts(BaseModel, frozen=True):
    """The properties of a board that a result depends on; its alias is not one."""

    soc: str
    python: str
    runtimes: dict[str, str]


class Board(Protocol):
    """Run commands on a board and move files; every method raises SessionFailed when the board is lost.

    runners: the module that runs a target's parts there, where it is not its runner.py; workers: parallel sessions;
    spool_bytes: harvested bytes that may wait there, 0 where nothing is fetched; reconnect_s: how long to wait for a
    lost board. A session locks the board, uploads its job folder, deletes what it has fetched, and deletes the folder.
    """

    alias: str
    python: str
    runners: Mapping[str, str]
    workers: int
    spool_bytes: int
    reconnect_s: float

    def run(self, command: list[str], timeout_s: float) -> Output: ...
    def stream(
        self, command: list[str], silence_s: float, log: Callable[[str], None]
    ) -> Generator[str, None, None]: ...
    def put_all(self, pairs: Sequence[tuple[Path, Path]]) -> None: ...
    def get_all(self, pairs: Sequence[tuple[Path, Path]], limit_bytes: int) -> None: ...
    def facts(self, runtimes: tuple[str, ...], probe: str = "") -> BoardFacts: ...
    def locked(
        self, limit_s: float | None = None, is_over: Callable[[], bool] = lambda: False
    ) -> AbstractContextManager[None]: ...
    def job_folder(self, folder: Path, identity: str) -> Path: ...
    def delete(self, paths: Sequence[Path]) -> None: ...
    def remove_job(self, job: Path) -> None: ...
    def close(self) -> None: ...


def timed_out(command: list[str], timeout_s: float) -> SessionFailed:
    """Return the error for a command that did not end in time."""
    return SessionFailed(f"{command[0]} did not end within {timeout_s:g} s; run the same command again")


def silent(silence_s: float) -> RunnerFailed:
    """Return the error for a session that printed nothing for too long."""
    return RunnerFailed(
        f"the session printed nothing for {silence_s:g} s and was ended; "
        "run the same command again, finished clips are kept"
    )


def ended_early(reason: str) -> RunnerFailed:
    """Return the error for a session that failed."""
    return RunnerFailed(f"the session ended early: {reason}; run the same command again, finished clips are kept")


class LocalBoard:
    """Use this machine as the board, with this Python or that of an SDK's environment."""

    alias = "local"
    spool_bytes = 0
    reconnect_s = 0.0

    def __init__(
        self,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        runners: Mapping[str, str] = {},
        workers: int = 1,
    ) -> None:
        self.python, self.environment, self.runners, self.workers = python, environment, runners, workers

    def run(self, command: list[str], timeout_s: float) -> Output:
        """Run a command to its end."""
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False, env=self.environment
            )
        except subprocess.TimeoutExpired as error:
            raise timed_out(command, timeout_s) from error
        return Output(done.returncode, done.stdout, done.stderr)

    def stream(self, command: list[str], silence_s: float, log: Callable[[str], None]) -> Generator[str, None, None]:
        """Run a command and yield its output lines as they come; its stderr lines go to `log`.

        Raises RunnerFailed with the last line of stderr when it fails, or when it prints nothing for `silence_s`.
        """
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal reaches only this process, which ends it in order
            env=self.environment,
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        errors = deque[str](maxlen=200)

        def read_stdout() -> None:
            for text in process.stdout or ():
                lines.put(text.rstrip("\n"))
            lines.put(None)

        def read_stderr() -> None:
            for text in process.stderr or ():
                errors.append(text.rstrip())
                log(text.rstrip())

        readers = [threading.Thread(target=read, daemon=True) for read in (read_stdout, read_stderr)]
        for reader in readers:
            reader.start()
        ended = False
        try:
            while (line := lines.get(timeout=silence_s)) is not None:
                yield line
            status = process.wait()
            ended = True
        except queue.Empty:
            raise silent(silence_s) from None
        finally:
            if not ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for reader in readers:
                reader.join(timeout=5)
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()
        if status:
            raise ended_early(next((text for text in reversed(errors) if text.strip()), f"exit status {status}"))

    def locked(
        self, limit_s: float | None = None, is_over: Callable[[], bool] = lambda: False
    ) -> AbstractContextManager[None]:
        """Lock nothing: several runs may share this machine."""
        return contextlib.nullcontext()

    def job_folder(self, folder: Path, identity: str) -> Path:
        """Return where a job lies: in the host's own folder."""
        return folder

    def remove_job(self, job: Path) -> None:
        """Keep a finished job's folder, it is the host's."""

    def delete(self, paths: Sequence[Path]) -> None:
        """Keep files, they are the host's."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def put_all(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Place files by links (a hard link would touch the original's ctime); files that exist stay."""
        for local, remote in pairs:
            if not remote.exists():
                remote.parent.mkdir(parents=True, exist_ok=True)
                remote.unlink(missing_ok=True)
                remote.symlink_to(local.resolve())

    def get_all(self, pairs: Sequence[tuple[Path, Path]], limit_bytes: int) -> None:
        """Move files to where they are wanted."""
        for remote, local in pairs:
            if remote != local:
                local.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(remote, local)

    def facts(self, runtimes: tuple[str, ...], probe: str = "") -> BoardFacts:
        """Describe this machine."""
        found = facts([], probe)
        known = {name: version(name) or "absent" for name in sorted({"numpy", *runtimes})}
        return BoardFacts(soc=found["soc"], python=found["python"], runtimes=known | found["runtimes"])


def simulator_count() -> int:
    """Return how many simulators may run in parallel: one per core, as long as each has 3 GiB of memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // SIMULATOR_BYTES))
