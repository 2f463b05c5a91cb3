"""A connection to the agent on a board (device/agent.py): frames over a stream of fabric, of ssh or of a local process.

A board may be broken or hostile: its messages are checked against limits, and every wait has an end.
"""

import contextlib
import fcntl
import json
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

from nightjar.device.framing import LOST_S, READY
from nightjar.errors import BoardMissing, SessionFailed, printable
from nightjar.paths import ROOT

ANSWER_BYTES = 1 << 24
GREETING_BYTES = 1 << 16  # what a shell's start-up files print before the agent answers
ANSWER_S = 300.0  # hashing some gigabytes on a slow card
START_S = 30.0
MODULES = tuple(f"nightjar.device.{name}" for name in ("framing", "health", "file_cache", "agent"))


class Stream(Protocol):
    """Bytes to and from a program on a board; `receive` returns b"" at the end, None at the timeout.

    `send` raises OSError when the connection is lost, and TimeoutError when the board accepts no data.
    """

    def receive(self, count: int, timeout_s: float) -> bytes | None: ...
    def send(self, head: bytes, data: bytes = b"") -> None: ...
    def stderr_text(self) -> str: ...
    def close(self) -> None: ...


def pack_agent() -> bytes:
    """Pack the agent's modules into one Python program; it is exec'd, so that no file is needed on the board."""
    sources = {name: ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8") for name in MODULES}
    return (
        "import sys, types\n"
        "for name in ('nightjar', 'nightjar.device'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"for name, source in {json.dumps(sources)}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(source, name, 'exec'), module.__dict__)\n"
        "sys.modules['nightjar.device.agent'].main()\n"
    ).encode()


class AgentLink:
    """Exchange frames with one agent on a board; a thread sends a sign of life every ten seconds."""

    def __init__(self, alias: str, python: str, start: Callable[[list[str]], Stream], **request: Any) -> None:
        """start: runs a command on the board."""
        self.alias, self._buffer = alias, bytearray()
        self._sending, self._closed = threading.Lock(), threading.Event()
        agent = pack_agent()
        self._stream = start([python, "-c", f"import sys;exec(sys.stdin.buffer.read({len(agent)}))"])
        try:
            self._send(agent)
            self._await_ready(python)
            self.send_json(request)
        except BaseException:
            self._stream.close()
            raise
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def __enter__(self) -> "AgentLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent; what it runs or locks ends with it."""
        self._closed.set()
        self._stream.close()

    def send_json(self, request: dict[str, Any]) -> None:
        """Send one JSON frame."""
        self.send_frame(b"J", json.dumps(request).encode())

    def send_frame(self, kind: bytes, payload: bytes = b"") -> None:
        """Send one frame; raises SessionFailed when the connection is lost."""
        self._send(struct.pack("!cI", kind, len(payload)), payload)

    def receive(self, timeout_s: float) -> tuple[bytes, bytes] | None:
        """Return the next frame, None when it is not complete in time.

        Raises SessionFailed when the connection is lost or a frame is beyond all limits.
        """
        end = time.monotonic() + timeout_s
        if not self._fill(5, end):
            return None
        kind, length = struct.unpack("!cI", bytes(self._buffer[:5]))
        if kind not in (b"J", b"D", b"O", b"E") or length > ANSWER_BYTES:
            raise self._not_the_agent("an invalid frame")
        if not self._fill(5 + length, end):
            return None
        payload = bytes(self._buffer[5 : 5 + length])
        del self._buffer[: 5 + length]
        return kind, payload

    def wait_answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the agent's next answer; raises SessionFailed for an error, a timeout or an invalid answer."""
        frame = self.receive(timeout_s)
        if frame is None:
            raise SessionFailed(f"no answer from board {self.alias} in {timeout_s:g} s; run the same command again")
        return self.parse_answer(frame)

    def parse_answer(self, frame: tuple[bytes, bytes]) -> dict[str, Any]:
        """Return the content of a JSON frame; raises SessionFailed for an error or an invalid answer."""
        try:
            answer = json.loads(frame[1]) if frame[0] == b"J" else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._not_the_agent("an invalid answer")
        if "error" in answer:
            raise SessionFailed(f"error on board {self.alias}: {printable(str(answer['error']))}; see docs/boards.md")
        return answer

    def _send(self, head: bytes, data: bytes = b"") -> None:
        try:
            with self._sending:
                self._stream.send(head, data)
        except TimeoutError as error:
            raise SessionFailed(f"board {self.alias} accepts no data; run the same command again") from error
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise connection_lost(self.alias) from error

    def _not_the_agent(self, received: str) -> SessionFailed:
        return SessionFailed(f"{received} from board {self.alias}; check what runs there as Python")

    def _fill(self, count: int, end: float) -> bool:
        while len(self._buffer) < count:
            if (left := end - time.monotonic()) <= 0:
                return False
            data = self._stream.receive(1 << 20, left)
            if data == b"":
                raise connection_lost(self.alias)
            self._buffer += data or b""
        return True

    def _await_ready(self, python: str) -> None:
        end = time.monotonic() + START_S
        while (at := self._buffer.find(READY)) < 0:
            data = self._stream.receive(4096, end - time.monotonic()) if time.monotonic() < end else None
            self._buffer += data or b""
            if not data or len(self._buffer) > GREETING_BYTES:
                output = self._stream.stderr_text() or bytes(self._buffer[-200:]).decode("utf-8", "replace")
                raise BoardMissing(
                    f"board {self.alias} does not run {python} ({printable(output) or 'no output'}): install "
                    "python3 there, or set python in boards.toml"
                )
        del self._buffer[: at + len(READY)]

    def _keep_alive(self) -> None:
        while not self._closed.wait(LOST_S / 6):
            with contextlib.suppress(SessionFailed):
                self.send_frame(b".")


class ProcessStream:
    """The pipes of a process on this machine."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal reaches only this process, which ends it in order
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._to, self._from, self._errors = self._process.stdin, self._process.stdout, self._process.stderr
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)

    def receive(self, count: int, timeout_s: float) -> bytes | None:
        if not select.select([self._from], [], [], timeout_s)[0]:
            return None
        return os.read(self._from.fileno(), count)

    def send(self, head: bytes, data: bytes = b"") -> None:
        self._to.write(head)
        self._to.write(data)  # not joined: copying half a megabyte takes time
        self._to.flush()

    def stderr_text(self) -> str:
        return read_ready(self._errors, 2)

    def close(self) -> None:
        with contextlib.suppress(OSError), self._process:  # closes the pipes
            self._process.terminate()  # an agent ends its command
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()


def read_ready(pipe: IO[bytes], timeout_s: float) -> str:
    """Return the text that a pipe has, or gets within the timeout."""
    if not select.select([pipe], [], [], timeout_s)[0]:
        return ""
    return os.read(pipe.fileno(), 4096).decode("utf-8", "replace")


def connection_lost(alias: str) -> SessionFailed:
    """Return the error for a lost connection."""
    return SessionFailed(
        f"the connection to board {alias} was lost; run the same command again, finished clips are kept"
    )
