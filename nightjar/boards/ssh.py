"""A board that is reached by ssh: fabric holds the connection and runs commands, the system's ssh carries files.

Why two: docs/decisions/008-boards.md. Both check host keys against known_hosts; neither writes them.
"""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fabric
import paramiko
from pydantic import BaseModel, Field, ValidationError

from nightjar.boards.agent_link import AgentLink, ProcessStream, connection_lost
from nightjar.boards.board import Board, BoardFacts
from nightjar.boards.config import STRICT_OPTIONS, BoardAddress, ssh_settings
from nightjar.boards.file_transfer import LIMIT_BYTES, get_files, put_files
from nightjar.boards.lock import wait_for_lock
from nightjar.boards.ssh_connection import CONNECT_S, ChannelStream, connect
from nightjar.errors import SessionFailed
from nightjar.process import lock_owner


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


class SshBoard(Board):
    """Use a machine behind ssh as the board; it connects when it is first needed."""

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
            answer = link.wait_answer(timeout_s=60)
        try:
            return BoardStatus.model_validate(answer)
        except ValidationError as error:
            raise SessionFailed(
                f"invalid description from board {self.alias}: {error.errors()[0]['msg']}; check what runs there"
            ) from error

    def _agent(self, **request: Any) -> AgentLink:
        return AgentLink(self.alias, self.python, self._open_channel, **request)

    def _open_channel(self, command: list[str]) -> ChannelStream:
        try:
            channel = self._connected().transport.open_session(timeout=CONNECT_S)
            channel.exec_command(f"exec {shlex.join(command)}")
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise connection_lost(self.alias) from error
        return ChannelStream(channel)

    def _connected(self) -> fabric.Connection:
        if self._connection is None:
            self._connection = connect(self._address)
        return self._connection

    @contextlib.contextmanager
    def _file_link(self) -> Iterator[AgentLink]:
        """Give the link for files, opened once: the system's ssh, which is as fast as its sftp; paramiko is not."""
        if self._files is None:
            self._connected()  # its errors name the cause; those of ssh are text for a person
            cache_bytes = int(self.entry.cache_gib * 2**30)
            request = {"serve": "files", "scratch": self.entry.scratch, "cache_bytes": cache_bytes}
            self._files = AgentLink(self.alias, self.python, self._start_ssh, **request)
            self._scratch = str(self._files.wait_answer().get("scratch"))
        try:
            yield self._files
        except BaseException:  # the next answer may be that of an earlier request
            self._files.close()
            self._files = None
            raise

    def _start_ssh(self, command: list[str]) -> ProcessStream:
        *options, destination = self._address.ssh
        proxy = ssh_settings(self._address).proxy
        # The same proxy as fabric's, so that a jump host's key is checked as strictly.
        jump = ["-o", f"ProxyCommand={proxy.replace('%', '%%')}", "-o", "ProxyJump=none"] if proxy else []
        shell = f"exec {shlex.join(command)}"
        return ProcessStream(["ssh", *options, *STRICT_OPTIONS, *jump, "--", destination, shell])

    def _request_files(self, request: dict[str, Any]) -> None:
        with self._file_link() as link:
            link.send_json(request)
            link.wait_answer()
