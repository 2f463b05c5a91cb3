"""One run per board: a lock on the board that ends with the connection of the process that has it."""

import logging
import math
import time
from collections.abc import Callable

from nightjar.boards.agent_link import AgentLink
from nightjar.errors import BoardBusy, printable

log = logging.getLogger(__name__)


def wait_for_lock(
    link: AgentLink,
    warn: Callable[[str], None] = log.warning,
    limit_s: float | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until the agent has the board's lock, which ends with the link; warn once about the process that has it.

    Raises BoardBusy after `limit_s`, or when `is_over()`: there is nothing left to do.
    """
    owner, end = "an unknown process", time.monotonic() + (math.inf if limit_s is None else limit_s)
    while True:
        if (frame := link.receive(1.0)) is None:
            if is_over() or time.monotonic() > end:
                raise board_busy(link.alias, owner, limit_s)
            continue
        answer = link.parse_answer(frame)
        if answer.get("held") is True:
            return
        owner = printable(str(answer.get("by")))
        warn(f"board {link.alias} is locked by {owner}; waiting")


def board_busy(alias: str, owner: str, limit_s: float | None) -> BoardBusy:
    """Return the error for a board that stayed locked."""
    return BoardBusy(
        f"board {alias} is still locked by {owner} after {limit_s or 0:g} s: run the same command later, or give a "
        "longer --board-wait"
    )
