"""One attempt at a deployed run: `python -m flows.engine`, which workers start instead of `python -m prefect.engine`.

It runs Prefect's engine and holds the run's lock (nightjar/store/run_lock.py), by which `nightjar flows revive` sees
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


class PipeSafeStream:
    """A stream that survives the end of its reader.

    A worker that is killed closes its end of our output, and the console of Prefect's log would then end the run (rich,
    on_broken_pipe).
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, or discard the text if nobody reads."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Flush, or discard if nobody reads."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names, as Prefect's engine does."""
    run = os.environ["PREFECT__FLOW_RUN_ID"]
    for name in filter(None, os.environ.get("PREFECT_LOGGING_EXTRA_LOGGERS", "").split(",")):
        logging.getLogger(name).setLevel(logging.INFO)  # Prefect sets their handler but not their level
    sys.stdout, sys.stderr = PipeSafeStream(sys.stdout), PipeSafeStream(sys.stderr)
    logging.getLogger("prefect.task_runs").addFilter(_drop_empty_trace)
    logging.getLogger("prefect.flow_runs").addFilter(_is_unexpected)
    with hold_run(run, lambda: _attempt_number(run)):
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _drop_empty_trace(record: logging.LogRecord) -> bool:
    """Remove the trace of a task that returned its failure: it is empty and would be printed as NoneType."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Drop the report of an explained failure: its message is already the run's state (flows/form.py)."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "FailedRun"


def _attempt_number(run: str) -> int:
    """Return the number of this attempt."""
    from prefect.client.orchestration import get_client  # takes two seconds: only once the lock is held

    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run)).run_count + 1


if __name__ == "__main__":
    gc.set_threshold(100_000, 20, 20)  # imports create a million objects that stay
    main()
