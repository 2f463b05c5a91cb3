"""fabric's connection to a board: host keys checked and never written, keys offered, every refusal one line."""

import contextlib
import os
import select
import shlex
import socket
import subprocess
import time
from pathlib import Path

import paramiko
from fabric import Config, Connection

from nightjar.boards.agent_link import connection_lost
from nightjar.boards.config import BoardAddress, SshSettings, ssh_settings
from nightjar.errors import BoardMissing, SessionFailed
from nightjar.text import printable

CONNECT_S = 10.0
SEND_S = 60.0


class ChannelStream:
    """A channel of fabric's connection."""

    def __init__(self, alias: str, channel: paramiko.Channel) -> None:
        self.alias, self._channel = alias, channel

    def receive(self, count: int, timeout_s: float) -> bytes | None:
        self._channel.settimeout(max(timeout_s, 0.001))
        try:
            data: bytes = self._channel.recv(count)
            return data
        except TimeoutError:
            return None

    def send(self, head: bytes, data: bytes = b"") -> None:
        left, end = head + data, time.monotonic() + SEND_S
        while left:
            try:
                left = left[self._channel.send(left) :]
            except TimeoutError:
                if time.monotonic() < end:
                    continue
                raise SessionFailed(f"board {self.alias} takes nothing; run the same command again") from None
            except OSError as error:
                raise connection_lost(self.alias) from error

    def stderr_text(self) -> str:
        self._channel.settimeout(2)
        with contextlib.suppress(TimeoutError):
            said: bytes = self._channel.recv_stderr(4096)
            return said.decode("utf-8", "replace")
        return ""

    def close(self) -> None:
        self._channel.close()


class ProxySocket(socket.socket):
    """A socket whose other end is a ProxyCommand; closed, the command ends."""

    @classmethod
    def through(cls, command: str) -> "ProxySocket":
        ours, theirs = socket.socketpair()
        tunnel = cls(fileno=ours.detach())
        with theirs:
            # Its own process group, as ever: Ctrl-C is for us.
            tunnel.process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        return tunnel

    process: subprocess.Popen[bytes]

    def close(self) -> None:
        super().close()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def stderr_text(self) -> str:
        """Return what the command complained of."""
        assert self.process.stderr is not None
        if not select.select([self.process.stderr], [], [], 1)[0]:
            return ""
        return os.read(self.process.stderr.fileno(), 4096).decode("utf-8", "replace")


def connect(reach: BoardAddress) -> Connection:
    """Connect; raises BoardMissing in one line that says what mends it."""
    way = ssh_settings(reach)
    tunnel = ProxySocket.through(way.proxy) if way.proxy else None
    connection = Connection(
        way.host,
        user=way.user,
        port=way.port,
        config=Config(ssh_config=paramiko.SSHConfig()),  # ssh itself has read the files, Include and Match too
        connect_timeout=int(CONNECT_S),
        connect_kwargs={
            "key_filename": list(way.keys),
            "look_for_keys": False,
            "banner_timeout": CONNECT_S,
            "auth_timeout": CONNECT_S,
            **({"sock": tunnel} if tunnel else {}),
        },
    )
    connection.client = paramiko.SSHClient()  # fabric's own takes any host key
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    for file in filter(lambda path: Path(path).is_file(), way.known_hosts):
        connection.client.load_system_host_keys(file)  # read, never saved
    try:
        connection.open()
    except Exception as error:
        connection.client.close()
        words = ""
        if tunnel is not None:
            words = tunnel.stderr_text()
            tunnel.close()
        raise _refused(reach.alias, way, error, words) from error
    connection.transport.set_keepalive(15)
    return connection


def _refused(alias: str, way: SshSettings, error: Exception, words: str) -> BoardMissing:
    name = way.host if way.port == 22 else f"[{way.host}]:{way.port}"
    file = way.known_hosts[0] if way.known_hosts else "~/.ssh/known_hosts"
    scan = f"`ssh-keyscan -p {way.port} {shlex.quote(way.host)} >> {shlex.quote(file)}`"
    if isinstance(error, paramiko.BadHostKeyException):
        return BoardMissing(
            f"the host key of board {alias} has changed: if it was set up anew, `ssh-keygen -R {shlex.quote(name)} -f "
            f"{shlex.quote(file)}`, then {scan}; if not, somebody is in between"
        )
    if isinstance(error, paramiko.SSHException) and "not found in known_hosts" in str(error):
        return BoardMissing(
            f"the host key of board {alias} is not known: add it with {scan}, and compare it with what "
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on the board"
        )
    if isinstance(error, paramiko.AuthenticationException):
        return BoardMissing(
            f"board {alias} does not let {way.user} in with a key: `ssh-copy-id` one, or name it in ~/.ssh/config"
        )
    if isinstance(error, socket.gaierror):
        return BoardMissing(
            f"no board {alias!r}: nothing called {way.host} is on the network; give local, simulator, or an alias of "
            "~/.ssh/config or boards.toml with --board"
        )
    reason = printable(words) or printable(str(error)) or type(error).__name__
    return BoardMissing(
        f"board {alias} does not answer at {way.host} port {way.port} ({reason}): look at its power and network, "
        f"then `nightjar board check {alias}`"
    )
