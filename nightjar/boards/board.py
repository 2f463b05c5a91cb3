"""Where a binary runs: a board runs commands, takes files and gives them back."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field

from nightjar.boards.agent_link import AgentLink, ProcessStream
from nightjar.device.health import facts
from nightjar.errors import RunnerFailed, SessionFailed, printable
from nightjar.store.fingerprint import version

LINE_BYTES = 1 << 24  # the result of one clip, with logits, has some hundred KiB
OUTPUT_BYTES = 1 << 30  # stdout of one session
STDERR_BYTES = 1 << 26  # stderr of one session
STDERR_LINE_BYTES = 1 << 12
SIMULATOR_BYTES = 3 * 2**30  # of memory: twice what whisper-tiny's three parts take


Word = Annotated[str, Field(max_length=200, pattern=r"^\P{C}*$")]  # no control characters


class BoardFacts(BaseModel, frozen=True):
    """The properties of a board that a result depends on; its alias is not one. The board is not trusted."""

    soc: Word
    python: str = Field(max_length=200, pattern=r"^\d{1,3}\.\d{1,3}[\w.+]*$")
    runtimes: dict[Word, Word] = Field(max_length=50)


class Board(Protocol):
    """Run commands on a board and move files; every method raises SessionFailed when the board is lost.

    runners: the module that runs a target's parts there, where it is not its runner.py; workers: parallel sessions;
    spool_bytes: harvested bytes that may wait there, 0 where nothing is fetched; reconnect_s: how long to wait for a
    lost board. A session locks the board, uploads its job folder, deletes what it has fetched, and deletes the folder.
    """

    alias: str
    python: str
    runners: Mapping[str, str] = {}
    workers: int = 1
    spool_bytes: int = 0
    reconnect_s: float = 0.0

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
    def _agent(self, **request: Any) -> AgentLink: ...

    def run(self, command: list[str], timeout_s: float) -> CompletedProcess[str]:
        """Run a command to its end; raises SessionFailed when it takes longer or prints too much."""
        output = {b"O": bytearray(), b"E": bytearray()}
        end = time.monotonic() + timeout_s
        with self._agent(serve="command", command=command) as link:
            while (frame := link.receive(end - time.monotonic())) is not None and frame[0] in output:
                output[frame[0]] += frame[1]
                if len(output[b"O"]) + len(output[b"E"]) > LINE_BYTES:
                    raise _too_much_output(link)
            if frame is None:
                raise SessionFailed(f"{command[0]} did not end within {timeout_s:g} s; run the same command again")
            status = _status(link, frame)
        return CompletedProcess(command, status, *(text.decode("utf-8", "replace") for text in output.values()))

    def stream(self, command: list[str], silence_s: float, log: Callable[[str], None]) -> Generator[str, None, None]:
        """Run a command and yield its output lines as they come; its stderr lines go to `log`.

        Raises RunnerFailed with the last line of stderr when it fails or prints nothing for `silence_s`, SessionFailed
        when the connection is lost, and when the output is longer than any session's.
        """
        output, errors, last, output_bytes, error_bytes = bytearray(), bytearray(), "", 0, 0
        with self._agent(serve="command", command=command) as link:
            try:
                end = time.monotonic() + silence_s
                while (frame := link.receive(end - time.monotonic())) is not None and frame[0] in (b"O", b"E"):
                    if frame[0] == b"E":
                        errors += frame[1]
                        error_bytes += len(frame[1])
                        for text in map(printable, _take_lines(errors, STDERR_LINE_BYTES)):
                            last = text or last
                            log(text)
                        del errors[:-STDERR_LINE_BYTES]
                    else:
                        output += frame[1]
                        output_bytes += len(frame[1])
                        for text in _take_lines(output, LINE_BYTES):
                            yield text
                            end = time.monotonic() + silence_s
                    if len(output) > LINE_BYTES or output_bytes > OUTPUT_BYTES or error_bytes > STDERR_BYTES:
                        raise _too_much_output(link)
                if frame is None:
                    raise RunnerFailed(
                        f"the session printed nothing for {silence_s:g} s and was ended; "
                        "run the same command again, finished clips are kept"
                    )
                status = _status(link, frame)
            finally:
                _end_command(link)
        if output:
            yield output.decode("utf-8", "replace")
        if status:
            reason = last or printable(errors.decode("utf-8", "replace")) or f"exit status {status}"
            raise RunnerFailed(
                f"the session ended early: {reason}; run the same command again, finished clips are kept"
            )


class LocalBoard(Board):
    """Use this machine as the board, with this Python or that of an SDK's environment."""

    alias = "local"

    def __init__(
        self,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        runners: Mapping[str, str] = {},
        workers: int = 1,
    ) -> None:
        self.python, self.environment, self.runners, self.workers = python, environment, runners, workers

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

    def _agent(self, **request: Any) -> AgentLink:
        # This Python runs the agent: an SDK's environment need not be able to.
        return AgentLink(
            self.alias, sys.executable, lambda command: ProcessStream(command, self.environment), **request
        )


def simulator_count() -> int:
    """Return how many simulators may run in parallel: one per core, as long as each has 3 GiB of memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // SIMULATOR_BYTES))


def _take_lines(buffer: bytearray, limit: int) -> Iterator[str]:
    """Take the complete lines out of a buffer; a line beyond the limit stays in it."""
    while 0 <= (end := buffer.find(b"\n")) <= limit:
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        yield line.decode("utf-8", "replace")


def _status(link: AgentLink, frame: tuple[bytes, bytes]) -> int:
    status = link.parse_answer(frame).get("status")
    return status if isinstance(status, int) else 1


def _end_command(link: AgentLink) -> None:
    """End the command on the board and wait until it has ended."""
    with contextlib.suppress(SessionFailed):
        link.send_frame(b"K")
        end = time.monotonic() + 5
        while (frame := link.receive(end - time.monotonic())) is not None and frame[0] != b"J":
            pass


def _too_much_output(link: AgentLink) -> SessionFailed:
    return SessionFailed(
        f"a command on board {link.alias} printed more than any session does and was ended; check what runs there"
    )
