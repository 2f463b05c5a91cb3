"""A board that is reached by ssh: fabric holds the connection and runs commands, the system's ssh carries bulk.

Why two: docs/decisions/008-boards.md. Host keys are checked against known_hosts by both, and written by neither.
"""

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import fabric
import paramiko
from pydantic import BaseModel, Field, ValidationError, field_validator

from nightjar.boards.agent_link import AgentLink, ProcessStream, connection_lost, pack_agent
from nightjar.boards.board import BoardFacts, Output
from nightjar.boards.config import STRICT_OPTIONS, BoardAddress, ssh_settings
from nightjar.boards.file_transfer import LIMIT_BYTES, get_files, put_files
from nightjar.boards.lock import wait_for_lock
from nightjar.boards.ssh_connection import CONNECT_S, ChannelStream, connect
from nightjar.errors import RunnerFailed, SessionFailed
from nightjar.process import lock_owner
from nightjar.text import printable

LINE_BYTES = 1 << 24  # one clip's line, logits and all, is some hundred KiB
OUTPUT_BYTES = 1 << 30  # of one session
WORDS_BYTES = 1 << 26  # on its stderr
WORD_BYTES = 1 << 12  # of one line on stderr
FACTS_S = 60.0


class Health(BaseModel, strict=True):
    """What changes on a board from hour to hour."""

    disk_free_bytes: int
    memory_free_bytes: int
    governor: str = Field(max_length=100)
    throttled: str = Field(max_length=200)
    celsius: float | None
    time_s: float


class BoardStatus(BaseModel):
    """What a board says of itself, and who holds it."""

    facts: BoardFacts
    health: Health
    holder: str = Field(max_length=1000)

    @field_validator("facts")
    @classmethod
    def _can_be(cls, facts: BoardFacts) -> BoardFacts:
        said = [facts.soc, facts.python, *facts.runtimes, *facts.runtimes.values()]
        if not re.fullmatch(r"\d{1,3}\.\d{1,3}[\w.+]*", facts.python) or len(said) > 100:
            raise ValueError("no Python version")
        if not all(text.isprintable() and len(text) < 200 for text in said):
            raise ValueError("no versions")
        return facts


class SshBoard:
    """Use a machine behind ssh as the board; nothing is connected before it is needed."""

    runners: Mapping[str, str] = {}
    workers = 1
    reconnect_s = 120.0  # a reboot

    def __init__(self, reach: BoardAddress) -> None:
        self.spool_bytes = int(reach.entry.spool_gib * 2**30)
        self.alias, self.entry, self.python = reach.alias, reach.entry, reach.entry.python
        self.moved_bytes = 0  # by put and get
        self._reach = reach
        self._connection: fabric.Connection | None = None
        self._files: AgentLink | None = None
        self._scratch = ""

    def __enter__(self) -> "SshBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the board; everything that we run or hold there ends."""
        if self._files is not None:
            self._files.close()
        if self._connection is not None:
            self._connection.close()
        self._files = self._connection = None

    @contextlib.contextmanager
    def locked(self, limit_s: float | None = None, over: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold the board for one session; waits for whoever has it, at most `limit_s`; raises BoardBusy."""
        with self, self._agent(serve="lease", lock=self.entry.lock, holder=lock_owner()) as link:
            wait_for_lock(link, limit_s=limit_s, over=over)
            yield

    def job_folder(self, folder: Path, identity: str) -> Path:
        """Say where on the board a job lies, so that the next attempt finds what this one did."""
        return Path(self._scratch_folder()) / "jobs" / identity[:32]

    def remove_job(self, job: Path) -> None:
        """Delete a finished job; what it was made of stays in the board's cache."""
        with self._bulk() as link:
            link.say({"do": "remove", "path": str(job)})
            link.answer()

    def delete(self, paths: Sequence[Path]) -> None:
        """Delete files that were fetched, or are not needed any more."""
        with self._bulk() as link:
            link.say({"do": "drop", "paths": [str(path) for path in paths]})
            link.answer()

    def run(self, command: list[str], timeout_s: float) -> Output:
        """Run a command to its end; raises SessionFailed when it takes longer or prints without end."""
        said = {b"O": bytearray(), b"E": bytearray()}
        end = time.monotonic() + timeout_s
        with self._agent(serve="command", command=command) as link:
            while True:
                frame = link.receive(end - time.monotonic())
                if frame is None:
                    raise SessionFailed(f"{command[0]} did not end within {timeout_s:g} s; run the same command again")
                if frame[0] not in said:
                    break
                said[frame[0]] += frame[1]
                if len(said[b"O"]) + len(said[b"E"]) > LINE_BYTES:
                    raise self._endless()
            status = _status(link, frame)
        return Output(status, *(bytes(text).decode("utf-8", "replace") for text in said.values()))

    def stream(self, command: list[str], silence_s: float, log: Callable[[str], None]) -> Generator[str, None, None]:
        """Yield a command's output lines as they come.

        Raises RunnerFailed with the command's last word when it fails or says nothing for `silence_s`, SessionFailed
        when the connection is connection_lost, and when a line or all of them are longer than any session's.
        """
        said, errors, last, total = bytearray(), bytearray(), "", {b"O": 0, b"E": 0}
        with self._agent(serve="command", command=command) as link:
            try:
                end = time.monotonic() + silence_s
                while True:
                    frame = link.receive(end - time.monotonic())
                    if frame is None:
                        raise RunnerFailed(
                            f"the session said nothing for {silence_s:g} s and was ended; "
                            "run the same command again, finished clips are kept"
                        )
                    if frame[0] not in (b"O", b"E"):
                        break
                    total[frame[0]] += len(frame[1])
                    if frame[0] == b"E":
                        errors += frame[1]
                        for text in _taken(errors, WORD_BYTES):
                            word = printable(text)
                            last = word or last
                            log(word)
                        del errors[:-WORD_BYTES]
                    else:
                        said += frame[1]
                        for text in _taken(said, LINE_BYTES):
                            yield text
                            end = time.monotonic() + silence_s
                    if len(said) > LINE_BYTES or total[b"O"] > OUTPUT_BYTES or total[b"E"] > WORDS_BYTES:
                        raise self._endless()
                status = _status(link, frame)
            finally:
                _end(link)
        if said:
            yield said.decode("utf-8", "replace")
        if status:
            last = last or printable(errors.decode("utf-8", "replace")) or f"exit status {status}"
            raise RunnerFailed(f"the session ended early: {last}; run the same command again, finished clips are kept")

    def put(self, local: Path, remote: Path) -> None:
        """Place a file on the board: what is there already does not travel, half a file is gone on with."""
        self.put_all([(local, remote)])

    def put_all(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Place many files, with the waits of one."""
        with self._bulk() as link:
            self.moved_bytes += put_files(link, [(local, str(remote)) for local, remote in pairs])

    def get(self, remote: Path, local: Path) -> None:
        """Fetch a file; half a file is gone on with."""
        self.get_all([(remote, local)])

    def get_all(self, pairs: Sequence[tuple[Path, Path]], limit_bytes: int = LIMIT_BYTES) -> None:
        """Fetch many files, none longer than the limit."""
        with self._bulk() as link:
            self.moved_bytes += get_files(link, [(str(remote), local) for remote, local in pairs], limit_bytes)

    def facts(self, runtimes: tuple[str, ...], probe: str = "") -> BoardFacts:
        """Describe the board."""
        return self.status(runtimes, probe).facts

    def status(self, runtimes: tuple[str, ...], probe: str = "") -> BoardStatus:
        """Ask the board what it is, how it does and who holds it; nothing is uploaded."""
        wanted = {"runtimes": sorted({"numpy", *runtimes}), "probe": probe}
        with self, self._agent(serve="facts", scratch=self.entry.scratch, lock=self.entry.lock, **wanted) as link:
            said = link.answer(FACTS_S)
        try:
            return BoardStatus.model_validate(said)
        except ValidationError as error:
            raise SessionFailed(
                f"board {self.alias} says of itself what cannot be: {error.errors()[0]['msg']}; look at what runs there"
            ) from error

    def _scratch_folder(self) -> str:
        with self._bulk():
            return self._scratch

    def _agent(self, **asked: Any) -> AgentLink:
        packed = pack_agent()
        if self._connection is None:
            self._connection = connect(self._reach)
        try:
            channel = self._connection.transport.open_session(timeout=CONNECT_S)
            channel.exec_command(self._command(packed))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise connection_lost(self.alias) from error
        return AgentLink(self.alias, ChannelStream(self.alias, channel), packed, asked, self.python)

    @contextlib.contextmanager
    def _bulk(self) -> Iterator[AgentLink]:
        """Give the way for files, opened once: the system's ssh, as fast as its sftp, which paramiko is not."""
        if self._files is None:
            if self._connection is None:  # its messages say what is wrong, ssh's are for a person to read
                self._connection = connect(self._reach)
            *options, destination = self._reach.ssh
            packed, way = pack_agent(), ssh_settings(self._reach)
            # The same way as fabric's, so that a jump host's key is checked as strictly.
            proxy = ["-o", f"ProxyCommand={way.proxy.replace('%', '%%')}", "-o", "ProxyJump=none"] if way.proxy else []
            command = ["ssh", *options, *STRICT_OPTIONS, *proxy, "--", destination, self._command(packed)]
            asked = {"serve": "files", "scratch": self.entry.scratch, "cache_bytes": int(self.entry.cache_gib * 2**30)}
            self._files = AgentLink(self.alias, ProcessStream(self.alias, command), packed, asked, self.python)
            self._scratch = str(self._files.answer().get("scratch"))
        try:
            yield self._files
        except BaseException:  # its answers may be of what was asked before
            self._files.close()
            self._files = None
            raise

    def _command(self, packed: bytes) -> str:
        return f"exec {shlex.quote(self.python)} -c 'import sys;exec(sys.stdin.buffer.read({len(packed)}))'"

    def _endless(self) -> SessionFailed:
        return SessionFailed(
            f"board {self.alias} prints without end, more than any session does; it was ended: look at what runs there"
        )


def _taken(buffer: bytearray, limit: int) -> Iterator[str]:
    """Take the whole lines out of a buffer; a line beyond the limit stays in it."""
    while 0 <= (end := buffer.find(b"\n")) <= limit:
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        yield line.decode("utf-8", "replace")


def _status(link: AgentLink, frame: tuple[bytes, bytes]) -> int:
    status = link.read(frame).get("status")
    return status if isinstance(status, int) else 1


def _end(link: AgentLink) -> None:
    """End what runs on the board, and see it end, so that nobody finds it running after us."""
    with contextlib.suppress(SessionFailed):
        link.send(b"K")
        end = time.monotonic() + 5
        while (frame := link.receive(end - time.monotonic())) is not None and frame[0] != b"J":
            pass
