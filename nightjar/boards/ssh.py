"""A board that is reached by ssh: fabric holds the connection and runs commands, the system's ssh carries files.

Why two: docs/decisions/008-boards.md. Both check host keys against known_hosts; neither writes them.
"""

import contextlib
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fabric
import paramiko
from pydantic import BaseModel, Field, ValidationError, field_validator

from nightjar.boards.agent_link import AgentLink, ProcessStream, connection_lost, pack_agent
from nightjar.boards.board import BoardFacts, Output, ended_early, silent, timed_out
from nightjar.boards.config import STRICT_OPTIONS, BoardAddress, ssh_settings
from nightjar.boards.file_transfer import LIMIT_BYTES, get_files, put_files
from nightjar.boards.lock import wait_for_lock
from nightjar.boards.ssh_connection import CONNECT_S, ChannelStream, connect
from nightjar.errors import SessionFailed, printable
from nightjar.process import lock_owner

LINE_BYTES = 1 << 24  # the result of one clip, with logits, has some hundred KiB
OUTPUT_BYTES = 1 << 30  # stdout of one session
STDERR_BYTES = 1 << 26  # stderr of one session
STDERR_LINE_BYTES = 1 << 12
FACTS_S = 60.0


class Health(BaseModel, strict=True):
    """The properties of a board that change from hour to hour."""

    disk_free_bytes: int
    memory_free_bytes: int
    governor: str = Field(max_length=100)
    throttled: str = Field(max_length=200)
    celsius: float | None
    time_s: float


class BoardStatus(BaseModel):
    """Facts and health of a board, and the process that has its lock."""

    facts: BoardFacts
    health: Health
    holder: str = Field(max_length=1000)

    @field_validator("facts")
    @classmethod
    def _check_texts(cls, facts: BoardFacts) -> BoardFacts:
        texts = [facts.soc, facts.python, *facts.runtimes, *facts.runtimes.values()]
        if not re.fullmatch(r"\d{1,3}\.\d{1,3}[\w.+]*", facts.python) or len(texts) > 100:
            raise ValueError("no Python version")
        if not all(text.isprintable() and len(text) < 200 for text in texts):
            raise ValueError("no versions")
        return facts


class SshBoard:
    """Use a machine behind ssh as the board; it connects when it is first needed."""

    runners: Mapping[str, str] = {}
    workers = 1
    reconnect_s = 120.0  # a reboot

    def __init__(self, address: BoardAddress) -> None:
        self.alias, self.entry, self.python = address.alias, address.entry, address.entry.python
        self.spool_bytes = int(self.entry.spool_gib * 2**30)
        self.moved_bytes = 0  # by put_all and get_all
        self._address = address
        self._connection: fabric.Connection | None = None
        self._files: AgentLink | None = None
        self._scratch = ""

    def __enter__(self) -> "SshBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; everything that runs or is locked there ends."""
        if self._files is not None:
            self._files.close()
        if self._connection is not None:
            self._connection.close()
        self._files = self._connection = None

    @contextlib.contextmanager
    def locked(self, limit_s: float | None = None, is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Lock the board for one session; waits at most `limit_s` for another one's lock; raises BoardBusy."""
        with self, self._agent(serve="lease", lock=self.entry.lock, holder=lock_owner()) as link:
            wait_for_lock(link, limit_s=limit_s, is_over=is_over)
            yield

    def job_folder(self, folder: Path, identity: str) -> Path:
        """Return where on the board a job lies; the next attempt finds the same folder."""
        with self._file_link():
            return Path(self._scratch) / "jobs" / identity[:32]

    def remove_job(self, job: Path) -> None:
        """Delete a finished job; its files stay in the board's cache."""
        self._request_files({"do": "remove", "path": str(job)})

    def delete(self, paths: Sequence[Path]) -> None:
        """Delete files that were fetched, or are no longer needed."""
        self._request_files({"do": "drop", "paths": [str(path) for path in paths]})

    def run(self, command: list[str], timeout_s: float) -> Output:
        """Run a command to its end; raises SessionFailed when it takes longer or prints too much."""
        output = {b"O": bytearray(), b"E": bytearray()}
        end = time.monotonic() + timeout_s
        with self._agent(serve="command", command=command) as link:
            while (frame := link.receive(end - time.monotonic())) is not None and frame[0] in output:
                output[frame[0]] += frame[1]
                if len(output[b"O"]) + len(output[b"E"]) > LINE_BYTES:
                    raise self._too_much_output()
            if frame is None:
                raise timed_out(command, timeout_s)
            status = _status(link, frame)
        return Output(status, *(text.decode("utf-8", "replace") for text in output.values()))

    def stream(self, command: list[str], silence_s: float, log: Callable[[str], None]) -> Generator[str, None, None]:
        """Run a command and yield its output lines as they come; its stderr lines go to `log`.

        Raises RunnerFailed with the last line of stderr when it fails or prints nothing for `silence_s`, SessionFailed
        when the connection is lost, and when the output is longer than any session's.
        """
        output, errors, last, received = bytearray(), bytearray(), "", Counter[bytes]()
        with self._agent(serve="command", command=command) as link:
            try:
                end = time.monotonic() + silence_s
                while (frame := link.receive(end - time.monotonic())) is not None and frame[0] in (b"O", b"E"):
                    received[frame[0]] += len(frame[1])
                    if frame[0] == b"E":
                        errors += frame[1]
                        for text in map(printable, _take_lines(errors, STDERR_LINE_BYTES)):
                            last = text or last
                            log(text)
                        del errors[:-STDERR_LINE_BYTES]
                    else:
                        output += frame[1]
                        for text in _take_lines(output, LINE_BYTES):
                            yield text
                            end = time.monotonic() + silence_s
                    if len(output) > LINE_BYTES or received[b"O"] > OUTPUT_BYTES or received[b"E"] > STDERR_BYTES:
                        raise self._too_much_output()
                if frame is None:
                    raise silent(silence_s)
                status = _status(link, frame)
            finally:
                _end_command(link)
        if output:
            yield output.decode("utf-8", "replace")
        if status:
            raise ended_early(last or printable(errors.decode("utf-8", "replace")) or f"exit status {status}")

    def put_all(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Place files; contents that the board has are not sent, a partial file is continued."""
        with self._file_link() as link:
            self.moved_bytes += put_files(link, [(local, str(remote)) for local, remote in pairs])

    def get_all(self, pairs: Sequence[tuple[Path, Path]], limit_bytes: int = LIMIT_BYTES) -> None:
        """Fetch files of at most `limit_bytes` each; a partial file is continued."""
        with self._file_link() as link:
            self.moved_bytes += get_files(link, [(str(remote), local) for remote, local in pairs], limit_bytes)

    def facts(self, runtimes: tuple[str, ...], probe: str = "") -> BoardFacts:
        """Describe the board."""
        return self.status(runtimes, probe).facts

    def status(self, runtimes: tuple[str, ...], probe: str = "") -> BoardStatus:
        """Return facts, health and lock holder of the board; nothing is uploaded."""
        wanted = {"runtimes": sorted({"numpy", *runtimes}), "probe": probe}
        with self, self._agent(serve="facts", scratch=self.entry.scratch, lock=self.entry.lock, **wanted) as link:
            answer = link.wait_answer(FACTS_S)
        try:
            return BoardStatus.model_validate(answer)
        except ValidationError as error:
            raise SessionFailed(
                f"invalid description from board {self.alias}: {error.errors()[0]['msg']}; check what runs there"
            ) from error

    def _agent(self, **request: Any) -> AgentLink:
        agent = pack_agent()
        if self._connection is None:
            self._connection = connect(self._address)
        try:
            channel = self._connection.transport.open_session(timeout=CONNECT_S)
            channel.exec_command(self._python_command(agent))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise connection_lost(self.alias) from error
        return AgentLink(self.alias, ChannelStream(self.alias, channel), agent, request, self.python)

    @contextlib.contextmanager
    def _file_link(self) -> Iterator[AgentLink]:
        """Give the link for files, opened once: the system's ssh, which is as fast as its sftp; paramiko is not."""
        if self._files is None:
            if self._connection is None:  # its errors name the cause; those of ssh are text for a person
                self._connection = connect(self._address)
            *options, destination = self._address.ssh
            agent, proxy = pack_agent(), ssh_settings(self._address).proxy
            # The same proxy as fabric's, so that a jump host's key is checked as strictly.
            jump = ["-o", f"ProxyCommand={proxy.replace('%', '%%')}", "-o", "ProxyJump=none"] if proxy else []
            command = ["ssh", *options, *STRICT_OPTIONS, *jump, "--", destination, self._python_command(agent)]
            request = {
                "serve": "files",
                "scratch": self.entry.scratch,
                "cache_bytes": int(self.entry.cache_gib * 2**30),
            }
            self._files = AgentLink(self.alias, ProcessStream(self.alias, command), agent, request, self.python)
            self._scratch = str(self._files.wait_answer().get("scratch"))
        try:
            yield self._files
        except BaseException:  # the next answer may be that of an earlier request
            self._files.close()
            self._files = None
            raise

    def _request_files(self, request: dict[str, Any]) -> None:
        with self._file_link() as link:
            link.send_json(request)
            link.wait_answer()

    def _python_command(self, agent: bytes) -> str:
        return f"exec {shlex.quote(self.python)} -c 'import sys;exec(sys.stdin.buffer.read({len(agent)}))'"

    def _too_much_output(self) -> SessionFailed:
        return SessionFailed(
            f"a command on board {self.alias} printed more than any session does and was ended; check what runs there"
        )


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
