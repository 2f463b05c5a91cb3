"""fabric's connection to a board: host keys are checked and never written; every refusal is one line."""

import contextlib
import shlex
import socket
import subprocess
import time
from pathlib import Path

import paramiko
from fabric import Config, Connection

from nightjar.boards.agent_link import read_ready
from nightjar.boards.config import BoardAddress, SshSettings, ssh_settings
from nightjar.errors import BoardMissing, printable

CONNECT_S = 10.0
SEND_S = 60.0


class ChannelStream:
    """A channel of fabric's connection."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

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
            except TimeoutError:  # that of a `receive` at the same time
                if time.monotonic() >= end:
                    raise
            except (EOFError, paramiko.SSHException) as error:  # the transport has ended
                raise ConnectionError(str(error) or "the connection has ended") from error

    def stderr_text(self) -> str:
        self._channel.settimeout(2)
        with contextlib.suppress(TimeoutError):
            text: bytes = self._channel.recv_stderr(4096)
            return text.decode("utf-8", "replace")
        return ""

    def close(self) -> None:
        self._channel.close()


class ProxySocket(socket.socket):
    """A socket whose other end is a ProxyCommand; the command ends when it is closed."""

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        with theirs:
            self.process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal reaches only this process
            )

    def close(self) -> None:
        super().close()
        with self.process:
            self.process.kill()

    def stderr_text(self) -> str:
        assert self.process.stderr is not None
        return read_ready(self.process.stderr, 1)


def connect(address: BoardAddress) -> Connection:
    """Connect; raises BoardMissing in one line that names the remedy."""
    settings = ssh_settings(address)
    proxy = ProxySocket(settings.proxy) if settings.proxy else None
    connection = Connection(
        settings.host,
        user=settings.user,
        port=settings.port,
        config=Config(ssh_config=paramiko.SSHConfig()),  # ssh itself has read the files, with Include and Match
        connect_timeout=int(CONNECT_S),
        connect_kwargs={
            "key_filename": list(settings.keys),
            "look_for_keys": False,
            "banner_timeout": CONNECT_S,
            "auth_timeout": CONNECT_S,
            **({"sock": proxy} if proxy else {}),
        },
    )
    connection.client = paramiko.SSHClient()  # fabric's own accepts any host key
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    for file in filter(lambda path: Path(path).is_file(), settings.known_hosts):
        connection.client.load_system_host_keys(file)  # read, never saved
    try:
        connection.open()
    except Exception as error:
        connection.client.close()
        proxy_errors = ""
        if proxy is not None:
            proxy_errors = proxy.stderr_text()
            proxy.close()
        raise _explain(address.alias, settings, error, proxy_errors) from error
    connection.transport.set_keepalive(15)
    return connection


def _explain(alias: str, settings: SshSettings, error: Exception, proxy_errors: str) -> BoardMissing:
    host, port = settings.host, settings.port
    name = shlex.quote(host if port == 22 else f"[{host}]:{port}")
    file = shlex.quote(settings.known_hosts[0] if settings.known_hosts else "~/.ssh/known_hosts")
    scan = f"`ssh-keyscan -p {port} {shlex.quote(host)} >> {file}`"
    if isinstance(error, paramiko.BadHostKeyException):
        return BoardMissing(
            f"the host key of board {alias} has changed: if the board was set up anew, run `ssh-keygen -R {name} -f "
            f"{file}`, then {scan}; if not, another machine may be in between"
        )
    if isinstance(error, paramiko.SSHException) and "not found in known_hosts" in str(error):
        return BoardMissing(
            f"the host key of board {alias} is not known: add it with {scan}, and compare it with the output of "
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the board"
        )
    if isinstance(error, paramiko.AuthenticationException):
        return BoardMissing(
            f"board {alias} refuses the key of {settings.user}: add one with `ssh-copy-id`, or name it in ~/.ssh/config"
        )
    if isinstance(error, socket.gaierror):
        return BoardMissing(
            f"no board {alias!r}: no host {host} on the network; give local, simulator, or an alias of ~/.ssh/config "
            "or boards.toml with --board"
        )
    reason = printable(proxy_errors) or printable(str(error)) or type(error).__name__
    return BoardMissing(
        f"board {alias} does not answer at {host} port {port} ({reason}): look at its power and network, "
        f"then `nightjar board check {alias}`"
    )
