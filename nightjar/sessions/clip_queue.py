"""The clips of a session: which are left, which board has which, and which are excluded and why."""

import logging
import threading
from collections import Counter, defaultdict
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
        self._waiting = [name for name in self.names if name not in journal.results]
        self._running: dict[str, list[str]] = defaultdict(list)  # by board
        self._failures = Counter[str]()
        self._failed_in_a_row: dict[str, list[str]] = defaultdict(list)  # by board

    def is_over(self) -> bool:
        """Tell whether no board has anything left to do."""
        with self._changed:
            return self.stopped or all(map(self._is_done, self.names))

    def stop(self) -> None:
        """Dispatch no more clips."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def take(self, alias: str, most: int, previous: Sequence[str] = ()) -> list[str]:
        """Dispatch at most `most` clips to a board, none when all are done; waits while others have the last ones.

        previous: clips that this board had when it or the host was lost; it may have finished some of them.
        """
        with self._changed:
            while not self._waiting and not self.is_over():
                self._changed.wait(1.0)
            if self.is_over():
                return []
            waiting = set(self._waiting)
            failed = [name for name in self._waiting if self._failures[name]]
            again = [name for name in previous if name in waiting]
            # An equal share of what is left, so that all boards end together.
            share = max(MIN_BATCH, -(-len(self._waiting) // self.boards))
            names = failed[:1] or again or self._waiting[: min(share, most)]
            taken = set(names)
            self._waiting = [name for name in self._waiting if name not in taken]
            self._running[alias] = names
            return names

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
            names = [name for name in self._running.pop(alias, ()) if not self._is_done(name)]
            self._waiting = list(dict.fromkeys([*names, *self._waiting]))
            self._changed.notify_all()

    def count_failed(self, alias: str, names: Iterable[str], reason: str) -> None:
        """Mark clips on which a runner crashed or hung for one retry, alone; exclude those that fail again.

        Raises RunnerFailed when the board is at fault: too many clips failed, or several in a row.
        """
        with self._changed:
            row = self._failed_in_a_row[alias]
            for name in sorted(names):
                self._failures[name] += 1
                if self._failures[name] < ATTEMPTS:
                    log.warning("clip %s is retried alone: %s", name, reason)
                else:
                    log.warning("clip %s is excluded: %s", name, reason)
                    self.excluded[name] = reason
                    row.append(name)
            few = max(MAX_FAILURES_IN_A_ROW, len(self.names) // 20)
            count = len(self.excluded)
            if row and (len(row) >= MAX_FAILURES_IN_A_ROW or count > few or count == len(self.names)):
                for name in self._failed_in_a_row.pop(alias):
                    del self.excluded[name]
                    del self._failures[name]
                    self._running[alias].append(name)  # requeued, another board may run it
                raise RunnerFailed(
                    f"{count} of {len(self.names)} clips failed on board {alias}, so the board or the binary is at "
                    f"fault, not the clips: {reason}"
                )
            self._changed.notify_all()

    def _is_done(self, name: str) -> bool:
        return name in self.journal.results or name in self.excluded
