"""One run per board: a lock on the board that dies with whoever holds it."""

import logging
import math
import time
from collections.abc import Callable

from nightjar.boards.agent_link import AgentLink
from nightjar.errors import BoardBusy
from nightjar.text import printable

log = logging.getLogger(__name__)


def wait_for_lock(
    link: AgentLink,
    tell: Callable[[str], None] = log.warning,
    limit_s: float | None = None,
    over: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until the board is ours; who holds it is told once. The link closed, it is free.

    Raises BoardBusy after `limit_s`, or when it is `over`: there is nothing left to do.
    """
    held, by, end = False, "somebody", time.monotonic() + (math.inf if limit_s is None else limit_s)
    while not held:
        if (frame := link.receive(1.0)) is None:
            if over() or time.monotonic() > end:
                raise board_busy(link.alias, by, limit_s)
            continue
        said = link.read(frame)
        held = said.get("held") is True
        if not held:
            by = printable(str(said.get("by")))
            tell(f"board {link.alias} is held by {by}; waiting")


def board_busy(alias: str, by: str, limit_s: float | None) -> BoardBusy:
    """Say who holds a board that we waited for in vain."""
    return BoardBusy(
        f"board {alias} is still held by {by} after {limit_s or 0:g} s: run the same command later, or give a longer "
        "--board-wait"
    )
