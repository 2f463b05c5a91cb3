"""How long work says where it is: whoever shows it listens, library code only ticks."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("progress", default=None)


def tick(done: int, total: int) -> None:
    """Say that `done` of `total` units are finished."""
    if (listener := _listener.get()) is not None:
        listener(done, total)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear the ticks of the work inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
