"""Boards and toolchains in a deployment: strict concurrency slots, `board:<alias>` and `toolchain:<target>`.

Of a board, the lock on it is the truth: it also keeps off who comes without Prefect, and dies with its holder. The slot
is what a person sees and may set to 0 in the UI. A toolchain has the slot alone: a compile or a simulation takes all
cores and much memory, and two of them on one machine take longer than one after the other. Without a server, or outside
a flow run, there are no slots.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from nightjar.boards.board import Board
from nightjar.boards.config import RESERVED, find_board
from nightjar.boards.lock import board_busy
from nightjar.errors import NightjarError
from nightjar.plugins.registry import Plugin
from nightjar.text import printable
from tasks.stage import current_run

log = logging.getLogger("nightjar.slot")

LEASE_S = 60.0  # a killed run's slot is free after it
TRY_S = 3.0  # between looks at whether anything is left to do


@contextlib.contextmanager
def hold_board(board: Board, over: Callable[[], bool]) -> Iterator[None]:
    """Hold a board for a session: its slot where a Prefect server knows this run, then the lock on it.

    A simulator is its toolchain's. Waits for a board as long as the run's --board-wait says, in all; raises BoardBusy.
    """
    limit_s, began = current_run().board_wait_s, time.monotonic()
    with contextlib.ExitStack() as held:
        if board.alias not in RESERVED:
            _take_board(held, board.alias, limit_s, over)
        for target in board.runners if board.alias in RESERVED else ():
            _take(held, f"toolchain:{target}", lambda: "another run")
        left_s = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - began))
        held.enter_context(board.locked(left_s, over))
        yield


@contextlib.contextmanager
def hold_toolchain(target: Plugin) -> Iterator[None]:
    """Hold the slot of a target's toolchain while its SDK works; a target without an SDK needs none."""
    with contextlib.ExitStack() as held:
        if target.tools():
            _take(held, f"toolchain:{target.name}", lambda: "another run")
        yield


def _take_board(held: contextlib.ExitStack, alias: str, limit_s: float | None, over: Callable[[], bool]) -> None:
    end = time.monotonic() + (math.inf if limit_s is None else limit_s)
    by = list[str]()

    def told() -> str:
        by.append(_holder(alias))
        return by[0]

    if not _take(held, f"board:{alias}", told, lambda: over() or time.monotonic() > end):
        raise board_busy(alias, by[0], limit_s)


def _take(
    held: contextlib.ExitStack, name: str, by: Callable[[], str], given_up: Callable[[], bool] = lambda: False
) -> bool:
    """Take a slot, where a Prefect server knows this run; return False when that was given up.

    by: says who has it, told once.
    """
    context = FlowRunContext.get()
    if context is None:
        return True
    _make_sure_of(name)
    told = False
    while True:
        slot = concurrency(
            name,
            timeout_seconds=TRY_S,
            lease_duration=LEASE_S,
            strict=True,  # a limit that was deleted meanwhile is an error, and not no limit
            holder=ConcurrencyLeaseHolder(type="flow_run", id=context.flow_run.id) if context.flow_run else None,
            raise_on_lease_renewal_failure=False,  # hours; the lock on the board holds all the same
        )
        try:
            held.enter_context(slot)
            return True
        except TimeoutError:
            if not told:
                told = True
                log.warning("%s is held by %s; waiting for its slot %s", name.replace(":", " "), by(), name)
            if given_up():
                return False


def _make_sure_of(name: str) -> None:
    """Create the slot where there is none; what a person has set stays."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def _holder(alias: str) -> str:
    """Ask the board who holds it: a process on a host says more than a run's id."""
    from nightjar.boards.ssh import SshBoard  # fabric, only when a board is used

    with contextlib.suppress(NightjarError):
        return printable(SshBoard(find_board(alias)).status(()).holder) or "another Prefect run"
    return "another Prefect run"
