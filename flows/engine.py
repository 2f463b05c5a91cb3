"""One attempt at a deployed run: `python -m flows.engine`, which a worker starts and not `python -m prefect.engine`.

It is Prefect's engine and holds the run's lock (nightjar/store/run_lock.py): `nightjar flows revive` tells by the lock
that the run is alive.
"""

import gc
import logging
import os
import runpy
import sys
from typing import Any, TextIO
from uuid import UUID

from nightjar.store.run_lock import hold_run


class Lasting:
    """A stream that outlives its reader: a worker that is killed takes its end of our output with it.

    The console of Prefect's log would end the run then (rich, on_broken_pipe).
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, to nowhere once nobody reads."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flush, to nowhere once nobody reads."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names, as Prefect's engine does."""
    run = os.environ["PREFECT__FLOW_RUN_ID"]
    for name in filter(None, os.environ.get("PREFECT_LOGGING_EXTRA_LOGGERS", "").split(",")):
        logging.getLogger(name).setLevel(logging.INFO)  # Prefect gives them its handler, and not its level
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
    logging.getLogger("prefect.task_runs").addFilter(_without_empty_trace)
    logging.getLogger("prefect.flow_runs").addFilter(_unexpected)
    with hold_run(run, lambda: _number(run)):
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _without_empty_trace(record: logging.LogRecord) -> bool:
    """Take the trace off a task that returned its failure: there is none, and it would be printed as NoneType."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


def _unexpected(record: logging.LogRecord) -> bool:
    """Leave out that an explained failure was raised once it was told: its line is the run's state (flows/form.py)."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "FailedRun"


def _number(run: str) -> int:
    """Count the attempts that the server knows, this one with them."""
    from prefect.client.orchestration import get_client  # two seconds, in which the lock is held already

    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run)).run_count + 1


if __name__ == "__main__":
    gc.set_threshold(100_000, 20, 20)  # importing makes a million objects that stay
    main()
