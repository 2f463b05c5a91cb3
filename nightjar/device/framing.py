"""The board's end of a connection: frames on stdin and stdout; sent to boards, standard library only.

A frame is a kind (one byte), a length (4 bytes, big-endian) and that many bytes: `J` JSON, `D` file content, `O` and
`E` stdout and stderr of a command, `K` end it, `.` a sign of life. LOST_S without a frame count as a closed connection.
"""

from __future__ import annotations  # boards have older Pythons

import json
import os
import select
import signal
import struct
from typing import Any

READY = b"\0nightjar agent 1\n"
LOST_S = 60
CHUNK = 1 << 19  # bytes
SMALL = 1 << 16  # bytes; smaller payloads are copied
FRAME_BYTES = 1 << 26  # a list of a hundred thousand files


class HostGone(BaseException):
    """The connection to the host is closed: the agent ends, whatever it does."""


_pending = bytearray()  # small frames that are sent with the next one: TCP delays small packets in a row


def send_frame(kind: bytes, payload: bytes = b"", more: bool = False) -> None:
    """Write one frame, together with the next one where `more` follows at once; raises HostGone."""
    _pending.extend(struct.pack("!cI", kind, len(payload)))
    if len(payload) < SMALL:
        _pending.extend(payload)
        payload = b""
    if more and not payload and len(_pending) < SMALL:
        return
    parts = bytes(_pending), payload
    _pending.clear()
    for part in parts:
        data = memoryview(part)
        while data:
            try:
                data = data[os.write(1, data) :]
            except OSError:
                raise HostGone from None


def send_answer(more: bool = False, **fields: Any) -> None:
    """Write one JSON frame."""
    send_frame(b"J", json.dumps(fields).encode(), more)


def receive_frame(timeout_s: float | None = None) -> tuple[bytes, bytes] | None:
    """Read one frame, None at the timeout; every byte resets the watchdog."""
    if timeout_s is not None and not select.select([0], [], [], timeout_s)[0]:
        return None
    kind, length = struct.unpack("!cI", _read_exactly(5))
    if length > FRAME_BYTES:
        raise HostGone
    return kind, _read_exactly(length)


def receive_request() -> dict[str, Any]:
    """Read the next JSON frame; signs of life are skipped."""
    while True:
        frame = receive_frame()
        if frame is not None and frame[0] == b"J":
            request: dict[str, Any] = json.loads(frame[1].decode())
            return request


def reset_watchdog() -> None:
    """Give the agent another LOST_S to live."""
    signal.alarm(LOST_S)


def _read_exactly(count: int) -> bytes:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        got = os.readv(0, [left])
        if not got:
            raise HostGone
        reset_watchdog()
        left = left[got:]
    return data  # type: ignore[return-value]  # only read; a copy to bytes would take time
