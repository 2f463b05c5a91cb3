"""How the board's end of a connection speaks: frames on stdin and stdout; sent to boards, standard library only.

A frame is a kind (one byte), a length (4 bytes, big-endian) and so many bytes: `J` JSON, `D` file content, `O` and `E`
a command's stdout and stderr, `K` end it, `.` a sign of life. Nothing heard for LOST_S counts as a closed connection.
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
SMALL = 1 << 16  # bytes that are worth a copy
FRAME_BYTES = 1 << 26  # a list of a hundred thousand files


class Stop(Exception):
    """The host is gone."""


_waiting = bytearray()  # to go with what follows: TCP lets small pieces one by one wait for each other


def say(kind: bytes, payload: bytes = b"", more: bool = False) -> None:
    """Write one frame, with the next one where `more` comes at once; a host that is gone ends us."""
    _waiting.extend(struct.pack("!cI", kind, len(payload)))
    if len(payload) < SMALL:
        _waiting.extend(payload)
        payload = b""
    if more and not payload and len(_waiting) < SMALL:
        return
    parts = bytes(_waiting), payload
    _waiting.clear()
    for part in parts:
        data = memoryview(part)
        while data:
            try:
                data = data[os.write(1, data) :]
            except OSError:
                raise Stop from None


def answer(more: bool = False, **fields: Any) -> None:
    """Write one JSON frame."""
    say(b"J", json.dumps(fields).encode(), more)


def heard(timeout_s: float | None = None) -> tuple[bytes, bytes] | None:
    """Read one frame, None when nothing comes in time; every sign of life winds up the watchdog."""
    if timeout_s is not None and not select.select([0], [], [], timeout_s)[0]:
        return None
    kind, length = struct.unpack("!cI", _exactly(5))
    if length > FRAME_BYTES:
        raise Stop
    return kind, _exactly(length)


def alive() -> None:
    """Wind up the watchdog: work goes on."""
    signal.alarm(LOST_S)


def _exactly(count: int) -> bytes:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        got = os.readv(0, [left])
        if not got:
            raise Stop
        alive()
        left = left[got:]
    return data  # type: ignore[return-value]  # to be read only; a copy to bytes would cost


def request() -> dict[str, Any]:
    """Read the next JSON frame, past signs of life."""
    while True:
        frame = heard()
        if frame is not None and frame[0] == b"J":
            asked: dict[str, Any] = json.loads(frame[1].decode())
            return asked
