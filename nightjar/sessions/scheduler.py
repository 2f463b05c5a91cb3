"""Clips worked off by boards: each is given to one board at a time, and what a lost board had goes to the others."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Protocol

from nightjar.boards.board import Board
from nightjar.errors import BoardBusy, BoardMissing, NightjarError, RunnerFailed, SessionFailed
from nightjar.progress import tick
from nightjar.sessions.journal import Journal

log = logging.getLogger(__name__)

LEAST = 8  # clips given at once: a session takes a second to start, on an NPU some
MOST = 512  # of them lie on a board's disk at once
IN_A_ROW = 3  # clips that fail one after the other, with none between that does not: it is not the clips
STRIKES = 2  # one retry
AGAIN_S = 2.0  # between attempts to reach a board that was lost


class Hold(Protocol):
    """Take the right to use a board; `over()` tells that nothing is left to do."""

    def __call__(self, board: Board, over: "Over") -> AbstractContextManager[None]: ...


class Over(Protocol):
    def __call__(self) -> bool: ...


class Batches(Protocol):
    """Run clips on boards that are held; before: which board had which when an earlier run was killed."""

    before: dict[str, Sequence[str]]

    def run(self, board: Board, names: Sequence[str], begun: set[str]) -> None:
        """Run clips, and write what is finished into the ledger; `begun` grows by each that is begun.

        Who is in it and not finished when this ends with RunnerFailed is suspected.
        """
        ...

    def uses(self, board: Board) -> bool: ...

    def leave(self, board: Board) -> None: ...


class Work:
    """Say which clips are left, which board has which, and which are set aside and why."""

    def __init__(self, names: Iterable[str], ledger: Journal, boards: int) -> None:
        self.names, self.ledger, self.boards = list(names), ledger, boards
        self.aside: dict[str, str] = {}
        self._change = threading.Condition()
        self._left = deque(name for name in self.names if name not in ledger.lines)
        self._alone = deque[str]()
        self._taken: dict[str, list[str]] = {}
        self._strikes: dict[str, int] = {}
        self._round = list[int]()  # how many clips the next boards are given
        self._in_a_row: dict[str, list[str]] = {}
        self.stopped = False

    def over(self) -> bool:
        """Tell whether nothing is left to do, for any board."""
        with self._change:
            return self.stopped or self._all_done()

    def stop(self) -> None:
        """Give out nothing more."""
        with self._change:
            self.stopped = True
            self._change.notify_all()

    def take(self, alias: str, most: int, before: Sequence[str] = ()) -> list[str]:
        """Give a board at most so many clips, none when all are done; waits while others have the last ones.

        `before`: those that this board had when the host was killed; it may have finished some.
        """
        with self._change:
            while not self.stopped and not self._all_done():
                if self._alone:
                    return self._given(alias, [self._alone.popleft()])
                if self._left:
                    return self._given(alias, self._next(most, before))
                self._change.wait(1.0)
            return []

    def _next(self, most: int, before: Sequence[str]) -> list[str]:
        left = set(self._left)
        again = [name for name in before if name in left]
        if self.boards == 1:
            count = len(self._left)
        else:
            if not self._round:  # three quarters of an equal share each, then of what is left: all end together
                self._round = [max(LEAST, 3 * len(self._left) // (4 * self.boards))] * self.boards
            count = self._round.pop()
        chosen = again or list(self._left)[: min(count, most)]
        gone = set(chosen)
        self._left = deque(name for name in self._left if name not in gone)
        return chosen

    def _given(self, alias: str, names: list[str]) -> list[str]:
        self._taken[alias] = names
        return names

    def finished(self, alias: str, name: str) -> None:
        """Count a clip that is in the ledger."""
        with self._change:
            self._in_a_row.pop(alias, None)
            self._strikes.pop(name, None)
            tick(len(self.ledger.lines) + len(self.aside), len(self.names))
            self._change.notify_all()

    def back(self, alias: str) -> None:
        """Take back what a board has not finished."""
        with self._change:
            names = [name for name in self._taken.pop(alias, []) if not self._is_done(name)]
            self._left.extendleft(reversed([name for name in names if name not in self._alone]))
            self._change.notify_all()

    def failed(self, alias: str, names: Iterable[str], why: str) -> None:
        """Have clips that a runner crashed or hung on tried once more, alone; set aside who fails again.

        Raises RunnerFailed when it is not the clips but the board: too many, or one after the other.
        """
        with self._change:
            row = self._in_a_row.setdefault(alias, [])
            for name in sorted(names):
                self._strikes[name] = self._strikes.get(name, 0) + 1
                if self._strikes[name] < STRIKES:
                    log.warning("clip %s is tried once more: %s", name, why)
                    self._alone.append(name)
                    continue
                log.warning("clip %s is set aside: %s", name, why)
                self.aside[name] = why
                row.append(name)
            few = max(IN_A_ROW, len(self.names) // 20)
            count = len(self.aside)
            if row and (len(row) >= IN_A_ROW or count > few or count == len(self.names)):
                for name in row:  # another board may well take them
                    del self.aside[name]
                    self._strikes.pop(name)
                    self._left.append(name)
                raise RunnerFailed(
                    f"{count} of {len(self.names)} clips failed on board {alias}, so it is not they but the "
                    f"board or the file: {why}"
                )
            self._change.notify_all()

    def _is_done(self, name: str) -> bool:
        return name in self.ledger.lines or name in self.aside

    def _all_done(self) -> bool:
        return not self._left and not self._alone and all(map(self._is_done, self.names))


def run_on_boards(boards: Sequence[Board], work: Work, batches: Batches, hold: Hold) -> None:
    """Work clips off on boards side by side; a board that is lost and does not come back leaves its clips to the rest.

    Raises what the last board was lost by; anything that is not a board's own fault ends all at once.
    """
    if len(boards) == 1:
        _serve(boards[0], work, batches, hold)
        return
    errors: list[NightjarError] = []
    with ThreadPoolExecutor(len(boards)) as pool:
        serving = {pool.submit(copy_context().run, _serve, board, work, batches, hold): board for board in boards}
        try:
            for ended in as_completed(serving):
                error = ended.exception()
                if isinstance(error, BoardMissing | SessionFailed | BoardBusy):
                    log.warning("board %s is out: %s", serving[ended].alias, error)
                    errors.append(error)
                elif error is not None:
                    raise error
        finally:
            work.stop()
            for board in boards:  # who is still in a session would not end otherwise
                board.close()
    if len(errors) == len(boards):
        raise errors[-1]


def _serve(board: Board, work: Work, batches: Batches, hold: Hold) -> None:
    """Let one board work clips off; lost, it may come back within its patience, as often as it got on in between."""
    lost_at, done, reached = 0.0, -1, False
    while not work.over() or (batches.uses(board) and not work.stopped):
        try:
            with hold(board, work.over):
                reached, lost_at = True, 0.0
                _sessions(board, work, batches)
            return
        except (BoardMissing, SessionFailed, BoardBusy) as error:
            if work.over():  # only its scratch is left, and that is deleted when it is old
                return
            finished = len(work.ledger.lines)
            lost_at = lost_at or time.monotonic()
            stuck = isinstance(error, RunnerFailed | BoardBusy) or (
                isinstance(error, SessionFailed) and finished == done
            )
            if stuck or not reached or time.monotonic() - lost_at >= board.reconnect_s:
                raise
            if isinstance(error, SessionFailed):
                done = finished
            log.warning("board %s: %s; trying it again", board.alias, error)
            work.back(board.alias)
            time.sleep(AGAIN_S)
        finally:
            work.back(board.alias)


def _sessions(board: Board, work: Work, batches: Batches) -> None:
    most = MOST if board.spool_bytes else len(work.names)
    while names := work.take(board.alias, most, batches.before.get(board.alias, ())):
        begun: set[str] = set()
        try:
            batches.run(board, names, begun)
        except RunnerFailed as error:
            suspects = begun - work.ledger.lines.keys()
            if not suspects:  # it does not even start
                raise
            work.failed(board.alias, suspects, str(error))
        work.back(board.alias)
    if not work.stopped:
        batches.leave(board)
