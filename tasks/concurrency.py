"""Concurrency limits of boards and toolchains on a Prefect server: `board:<alias>` and `toolchain:<target>`.

A board is protected by its own lock, which also excludes runs without Prefect and ends with its holder; the limit shows
its use in the UI, where a person may set it to 0. A toolchain has only the limit: a compile or a simulation uses all
cores and much memory, and two at once on one machine take longer than one after the other. Without a server, or outside
a flow run, there are no limits.
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
from prefect.exceptions import ObjectAlreadyExists

from nightjar.boards.board import Board
from nightjar.boards.config import RESERVED, find_board
from nightjar.boards.lock import board_busy
from nightjar.errors import NightjarError, printable
from nightjar.plugins.registry import Plugin
from tasks.stage import current_run

log = logging.getLogger("nightjar.slot")

LEASE_S = 60.0  # until the limit is free again after its holder was killed
TRY_S = 3.0  # between checks whether waiting still makes sense


@contextlib.contextmanager
def hold_board(board: Board, over: Callable[[], bool]) -> Iterator[None]:
    """Hold a board for a session: its limit in a run on a Prefect server, then the lock on it.

    A simulator has its toolchain's limit. `over` tells whether there is nothing left to do. Waits as long as
    --board-wait allows in total; raises BoardBusy.
    """
    limit_s = current_run().board_wait_s
    end = math.inf if limit_s is None else time.monotonic() + limit_s
    with contextlib.ExitStack() as held:
        if board.alias in RESERVED:
            for target in board.runners:
                _acquire(held, f"toolchain:{target}")
        elif not _acquire(held, f"board:{board.alias}", lambda: over() or time.monotonic() > end):
            raise board_busy(board.alias, _board_holder(board.alias), limit_s)
        held.enter_context(board.locked(None if limit_s is None else max(0.0, end - time.monotonic()), over))
        yield


@contextlib.contextmanager
def hold_toolchain(target: Plugin) -> Iterator[None]:
    """Hold the limit of a target's toolchain while its SDK works; a target without an SDK needs none."""
    with contextlib.ExitStack() as held:
        if target.tools():
            _acquire(held, f"toolchain:{target.name}")
        yield


def _acquire(held: contextlib.ExitStack, name: str, give_up: Callable[[], bool] = lambda: False) -> bool:
    """Acquire a concurrency limit if this is a run on a Prefect server; return False if `give_up` ended the wait."""
    context = FlowRunContext.get()
    if context is None:
        return True
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        # A limit that exists stays: a person may have set it.
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    waiting = False
    while True:
        limit = concurrency(
            name,
            timeout_seconds=TRY_S,
            lease_duration=LEASE_S,
            strict=True,  # a limit that was deleted meanwhile is an error
            holder=ConcurrencyLeaseHolder(type="flow_run", id=context.flow_run.id) if context.flow_run else None,
            raise_on_lease_renewal_failure=False,  # the work takes hours, and the lock on the board still protects it
        )
        try:
            held.enter_context(limit)
            return True
        except TimeoutError:
            if not waiting:
                waiting = True
                kind, _, alias = name.partition(":")
                holder = _board_holder(alias) if kind == "board" else "another run"
                log.warning("%s %s is held by %s; waiting for its limit %s", kind, alias, holder, name)
            if give_up():
                return False


def _board_holder(alias: str) -> str:
    """Ask the board which process holds it: that says more than the id of a run."""
    from nightjar.boards.ssh import SshBoard  # fabric, only when a board is used

    holder = ""
    with contextlib.suppress(NightjarError):
        holder = printable(SshBoard(find_board(alias)).status(()).holder)
    return holder or "another Prefect run"
