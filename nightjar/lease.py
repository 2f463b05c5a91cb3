"""One run per board: a lock on the board that dies with whoever holds it."""

import getpass
import logging
import os
import socket
import time
from collections.abc import Callable

from nightjar.link import Link, printable

log = logging.getLogger(__name__)


def holder() -> str:
    """Say who we are to those who wait: user@host, process, since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}, since {since}"


def wait_for_lock(link: Link, tell: Callable[[str], None] = log.warning) -> None:
    """Wait until the board is ours, as long as it takes; who holds it is told once. The link closed, it is free."""
    held = False
    while not held:
        if (frame := link.receive(1.0)) is None:
            continue
        said = link.read(frame)
        held = said.get("held") is True
        if not held:
            tell(f"board {link.alias} is held by {printable(str(said.get('by')))}; waiting")
