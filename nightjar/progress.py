"""Progress reporting: work calls `tick`, and a listener shows it."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

Listener = Callable[[int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("progress", default=None)


class StageOutcome(NamedTuple):
    """The outcome of a finished or planned stage; `key` is empty when it depends on a stage that has yet to run."""

    name: str
    seconds: float
    cached: bool
    why: str
    key: str = ""


class Screen(AbstractContextManager[object], Protocol):
    """Shows a run to a person."""

    def progress(self, stage: str, done: int, total: int) -> None: ...
    def outcome(self, outcome: StageOutcome) -> None: ...


def tick(done: int, total: int) -> None:
    """Report that `done` of `total` units are finished."""
    if (listener := _listener.get()) is not None:
        listener(done, total)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the ticks of the work inside to a listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
