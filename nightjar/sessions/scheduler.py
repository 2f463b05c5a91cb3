"""Schedules clips over boards and requeues those of a lost board."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from contextvars import copy_context

from nightjar.boards.board import Board
from nightjar.errors import BoardBusy, BoardMissing, NightjarError, RunnerFailed, SessionFailed
from nightjar.sessions.batch import BatchRunner

log = logging.getLogger(__name__)

MAX_BATCH = 512  # clips on a board's disk at once
RETRY_S = 2.0  # between attempts to reach a lost board

LockBoard = Callable[[Board, Callable[[], bool]], AbstractContextManager[None]]  # (board, is nothing left to do)


def run_on_boards(boards: Sequence[Board], runner: BatchRunner, lock_board: LockBoard) -> None:
    """Run the runner's clips on boards side by side; the clips of a board that stays lost go to the others.

    Raises the error of the last board when all are lost; an error that is not a board's own ends the session at once.
    """
    if len(boards) == 1:
        _serve(boards[0], runner, lock_board)
        return
    errors: list[NightjarError] = []
    with ThreadPoolExecutor(len(boards)) as pool:
        serving = {pool.submit(copy_context().run, _serve, board, runner, lock_board): board for board in boards}
        try:
            for ended in as_completed(serving):
                error = ended.exception()
                if isinstance(error, BoardMissing | SessionFailed | BoardBusy):
                    log.warning("board %s is lost: %s", serving[ended].alias, error)
                    errors.append(error)
                elif error is not None:
                    raise error
        finally:
            runner.queue.stop()
            for board in boards:  # a board in the middle of a session would not end otherwise
                board.close()
    if len(errors) == len(boards):
        raise errors[-1]


def _serve(board: Board, runner: BatchRunner, lock_board: LockBoard) -> None:
    """Run batches on one board; reach a lost board again within its `reconnect_s`, as long as it makes progress."""
    queue = runner.queue
    lost_at, finished_before, reached = 0.0, -1, False
    while not queue.is_over() or (runner.uses(board) and not queue.stopped):
        try:
            with lock_board(board, queue.is_over):
                reached, lost_at = True, 0.0
                _run_batches(board, runner)
            return
        except (BoardMissing, SessionFailed, BoardBusy) as error:
            if queue.is_over():  # only its job folder is left, and the board deletes that when it is old
                return
            lost_at = lost_at or time.monotonic()
            stuck = isinstance(error, RunnerFailed | BoardBusy)
            if isinstance(error, SessionFailed):
                finished = len(queue.journal.results)
                stuck, finished_before = stuck or finished == finished_before, finished
            if stuck or not reached or time.monotonic() - lost_at >= board.reconnect_s:
                raise
            log.warning("board %s: %s; retrying", board.alias, error)
        finally:
            queue.requeue(board.alias)
        time.sleep(RETRY_S)


def _run_batches(board: Board, runner: BatchRunner) -> None:
    queue, previous = runner.queue, runner.previous(board)
    while names := queue.take(board.alias, MAX_BATCH if board.spool_bytes else len(queue.names), previous):
        begun: set[str] = set()
        try:
            runner.run(board, names, begun)
        except RunnerFailed as error:
            suspects = begun - queue.journal.results.keys()
            if not suspects:  # the session does not even start
                raise
            queue.count_failed(board.alias, suspects, str(error))
        queue.requeue(board.alias)
    if not queue.stopped:
        runner.clean_up(board)
