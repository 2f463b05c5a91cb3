"""The clips of a session: which are left, which board has which, and which are excluded and why."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from nightjar.errors import RunnerFailed
from nightjar.progress import tick
from nightjar.sessions.journal import Journal

log = logging.getLogger(__name__)

MIN_BATCH = 8  # clips: a session takes a second to start, on an NPU several
MAX_FAILURES_IN_A_ROW = 3  # without a finished clip between them: the board is at fault, not the clips
ATTEMPTS = 2


class ClipQueue:
    """Dispatch clips to boards; requeue those of a lost board; retry a failed clip alone, then exclude it."""

    def __init__(self, names: Iterable[str], journal: Journal, boards: int) -> None:
        self.names, self.journal, self.boards = list(names), journal, boards
        self.excluded: dict[str, str] = {}  # reason by clip
        self.stopped = False
        self._changed = threading.Condition()
        self._waiting = deque(name for name in self.names if name not in journal.results)
        self._retries = deque[str]()
        self._running: dict[str, list[str]] = {}  # by board
        self._failures = Counter[str]()
        self._failed_in_a_row: dict[str, list[str]] = {}  # by board
        self._batch_sizes = list[int]()

    def is_over(self) -> bool:
        """Tell whether no board has anything left to do."""
        with self._changed:
            return self.stopped or self._all_done()

    def stop(self) -> None:
        """Dispatch no more clips."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def take(self, alias: str, most: int, previous: Sequence[str] = ()) -> list[str]:
        """Dispatch at most `most` clips to a board, none when all are done; waits while others have the last ones.

        previous: clips that this board had when the host was killed; it may have finished some of them.
        """
        with self._changed:
            while not self.stopped and not self._all_done():
                if self._retries or self._waiting:
                    names = [self._retries.popleft()] if self._retries else self._next_batch(most, previous)
                    self._running[alias] = names
                    return names
                self._changed.wait(1.0)
            return []

    def _next_batch(self, most: int, previous: Sequence[str]) -> list[str]:
        waiting = set(self._waiting)
        again = [name for name in previous if name in waiting]
        if self.boards == 1:
            count = len(waiting)
        else:
            if not self._batch_sizes:  # three quarters of an equal share, then of the rest: all boards end together
                self._batch_sizes = [max(MIN_BATCH, 3 * len(waiting) // (4 * self.boards))] * self.boards
            count = self._batch_sizes.pop()
        batch = again or list(self._waiting)[: min(count, most)]
        chosen = set(batch)
        self._waiting = deque(name for name in self._waiting if name not in chosen)
        return batch

    def count_finished(self, alias: str, name: str) -> None:
        """Count a clip that is in the journal."""
        with self._changed:
            self._failed_in_a_row.pop(alias, None)
            self._failures.pop(name, None)
            tick(len(self.journal.results) + len(self.excluded), len(self.names))
            self._changed.notify_all()

    def requeue(self, alias: str) -> None:
        """Put back the clips that a board has not finished."""
        with self._changed:
            names = [name for name in self._running.pop(alias, []) if not self._is_done(name)]
            self._waiting.extendleft(reversed([name for name in names if name not in self._retries]))
            self._changed.notify_all()

    def count_failed(self, alias: str, names: Iterable[str], reason: str) -> None:
        """Schedule clips on which a runner crashed or hung for one retry, alone; exclude those that fail again.

        Raises RunnerFailed when the board is at fault: too many clips failed, or several in a row.
        """
        with self._changed:
            row = self._failed_in_a_row.setdefault(alias, [])
            for name in sorted(names):
                self._failures[name] += 1
                if self._failures[name] < ATTEMPTS:
                    log.warning("clip %s is retried alone: %s", name, reason)
                    self._retries.append(name)
                else:
                    log.warning("clip %s is excluded: %s", name, reason)
                    self.excluded[name] = reason
                    row.append(name)
            few = max(MAX_FAILURES_IN_A_ROW, len(self.names) // 20)
            count = len(self.excluded)
            if row and (len(row) >= MAX_FAILURES_IN_A_ROW or count > few or count == len(self.names)):
                for name in row:  # another board may run them
                    del self.excluded[name]
                    del self._failures[name]
                    self._waiting.append(name)
                raise RunnerFailed(
                    f"{count} of {len(self.names)} clips failed on board {alias}, so the board or the binary is at "
                    f"fault, not the clips: {reason}"
                )
            self._changed.notify_all()

    def _is_done(self, name: str) -> bool:
        return name in self.journal.results or name in self.excluded

    def _all_done(self) -> bool:
        return not self._waiting and not self._retries and all(map(self._is_done, self.names))
