"""Where a binary runs: a board runs commands, takes files and gives them back."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel

from nightjar.device.health import facts
from nightjar.errors import RunnerFailed, SessionFailed
from nightjar.store.fingerprint import version

WORKER_BYTES = 3 * 2**30  # of one simulator: what tiny's three parts take, twice over


class Output(NamedTuple):
    """What a finished command left: exit status and text."""

    status: int
    stdout: str
    stderr: str


class BoardFacts(BaseModel, frozen=True):
    """Say what a board is, so far as a result depends on it; the alias is not part of it."""

    soc: str
    python: str
    runtimes: dict[str, str]


class Board(Protocol):
    """Run commands on a board and move files; every method raises SessionFailed when the board is lost.

    runners: the module that runs a target's parts there, where it is not its runner.py; workers: sessions side by side;
    spool_bytes: what may wait there to be fetched, 0 where nothing is fetched; reconnect_s: how long a board that was
    lost may take to come back. A session holds the board, places its job's folder, drops what is fetched, and leaves.
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

    def put(self, local: Path, remote: Path) -> None: ...

    def put_all(self, pairs: Sequence[tuple[Path, Path]]) -> None: ...

    def get(self, remote: Path, local: Path) -> None: ...

    def get_all(self, pairs: Sequence[tuple[Path, Path]], limit_bytes: int) -> None: ...

    def facts(self, runtimes: tuple[str, ...], probe: str = "") -> BoardFacts: ...

    def locked(
        self, limit_s: float | None = None, over: Callable[[], bool] = lambda: False
    ) -> AbstractContextManager[None]: ...

    def job_folder(self, folder: Path, identity: str) -> Path: ...

    def delete(self, paths: Sequence[Path]) -> None: ...

    def close(self) -> None: ...

    def remove_job(self, job: Path) -> None: ...


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
            raise SessionFailed(
                f"{command[0]} did not end within {timeout_s:g} s; run the same command again"
            ) from error
        return Output(done.returncode, done.stdout, done.stderr)

    def stream(self, command: list[str], silence_s: float, log: Callable[[str], None]) -> Generator[str, None, None]:
        """Yield a command's output lines as they come.

        Raises RunnerFailed with the command's last word when it fails, or when it says nothing for `silence_s`.
        """
        # Its own process group: Ctrl-C in the terminal reaches only us, and we end it in order.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=self.environment,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []

        def listen() -> None:
            for text in process.stderr or ():
                said.append(text.rstrip())
                del said[:-200]
                log(text.rstrip())

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        hung = threading.Event()

        def kill() -> None:
            hung.set()
            os.killpg(process.pid, signal.SIGKILL)

        try:
            while True:
                timer = threading.Timer(silence_s, kill)
                timer.start()
                line = process.stdout.readline()
                timer.cancel()
                if not line:
                    break
                yield line.rstrip("\n")
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            listener.join(timeout=5)
            process.stdout.close()
            process.stderr.close()
        if hung.is_set():
            raise RunnerFailed(
                f"the session said nothing for {silence_s:g} s and was ended; "
                "run the same command again, finished clips are kept"
            )
        if status:
            last = next((text for text in reversed(said) if text.strip()), f"exit status {status}")
            raise RunnerFailed(f"the session ended early: {last}; run the same command again, finished clips are kept")

    def locked(
        self, limit_s: float | None = None, over: Callable[[], bool] = lambda: False
    ) -> AbstractContextManager[None]:
        """Hold the board: this machine is everybody's."""
        return contextlib.nullcontext()

    def job_folder(self, folder: Path, identity: str) -> Path:
        """Say where a job lies: in the host's own folder."""
        return folder

    def remove_job(self, job: Path) -> None:
        """Keep a finished job's folder, it is the host's."""

    def delete(self, paths: Sequence[Path]) -> None:
        """Keep files, they are the host's."""

    def close(self) -> None:
        """Leave this machine."""

    def put_all(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Place many files; what is there already stays."""
        for local, remote in pairs:
            if not remote.exists():
                self.put(local, remote)

    def get_all(self, pairs: Sequence[tuple[Path, Path]], limit_bytes: int) -> None:
        """Fetch many files; what lies where it is wanted stays."""
        for remote, local in pairs:
            if remote != local:
                self.get(remote, local)

    def put(self, local: Path, remote: Path) -> None:
        """Place a file; on this machine by a link (a hard link would touch the original's ctime)."""
        remote.parent.mkdir(parents=True, exist_ok=True)
        remote.unlink(missing_ok=True)
        remote.symlink_to(local.resolve())

    def get(self, remote: Path, local: Path) -> None:
        """Fetch a file; on this machine by moving it."""
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(remote, local)

    def facts(self, runtimes: tuple[str, ...], probe: str = "") -> BoardFacts:
        """Describe this machine."""
        found = facts([], probe)
        known = {name: version(name) or "absent" for name in sorted({"numpy", *runtimes})}
        return BoardFacts(soc=found["soc"], python=found["python"], runtimes=known | found["runtimes"])


def workers() -> int:
    """Say how many simulators run side by side: one per core, if each can have 3 GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // WORKER_BYTES))
