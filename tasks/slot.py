"""A board in a Prefect deployment: a strict concurrency slot, `board:<alias>`, beside the lock on the board.

The lock is the truth: it also keeps off who comes without Prefect, and dies with its holder. The slot is what a person
sees and may set to 0 in the UI. Without a server, or outside a flow run, there is the lock alone.
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

from nightjar.board import Board
from nightjar.boards import OWN, find_board
from nightjar.errors import NightjarError
from nightjar.lease import busy
from nightjar.link import printable
from tasks.stage import current_run

log = logging.getLogger("nightjar.slot")

LEASE_S = 60.0  # a killed run's slot is free after it
TRY_S = 3.0  # between looks at whether anything is left to do


@contextlib.contextmanager
def holding(board: Board, over: Callable[[], bool]) -> Iterator[None]:
    """Hold a board for a session: its slot where a Prefect server knows this run, then the lock on it.

    Waits as long as the run's --board-wait says, in all; raises BoardBusy.
    """
    limit_s, began = current_run().board_wait_s, time.monotonic()
    with contextlib.ExitStack() as held:
        if board.alias not in OWN and FlowRunContext.get() is not None:
            _take_slot(held, board.alias, limit_s, over)
        left_s = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - began))
        held.enter_context(board.held(left_s, over))
        yield


def _take_slot(held: contextlib.ExitStack, alias: str, limit_s: float | None, over: Callable[[], bool]) -> None:
    name, by = f"board:{alias}", ""
    _make_sure_of(name)
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    end = time.monotonic() + (math.inf if limit_s is None else limit_s)
    while True:
        slot = concurrency(
            name,
            timeout_seconds=TRY_S,
            lease_duration=LEASE_S,
            strict=True,  # a limit that was deleted meanwhile is an error, and not no limit
            holder=ConcurrencyLeaseHolder(type="flow_run", id=run.id) if run is not None else None,
            raise_on_lease_renewal_failure=False,  # hours; the lock on the board holds all the same
        )
        try:
            held.enter_context(slot)
            return
        except TimeoutError:
            if not by:
                by = _holder(alias)
                log.warning("board %s is held by %s; waiting for its slot %s", alias, by, name)
            if over() or time.monotonic() > end:
                raise busy(alias, by, limit_s) from None


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
    from nightjar.ssh import SshBoard  # fabric, only when a board is used

    with contextlib.suppress(NightjarError):
        return printable(SshBoard(find_board(alias)).visit(()).holder) or "another Prefect run"
    return "another Prefect run"
