"""One attempt at a deployed run: `python -m flows.engine`, which workers start instead of `python -m prefect.engine`.

It runs Prefect's engine and holds the run's lock (nightjar/store/run_lock.py), by which `nightjar flows revive` sees
that the run is alive.
"""

import gc
import io
import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

from nightjar.store.run_lock import hold_run


class PipeSafeOutput(io.FileIO):
    """An output that becomes /dev/null once nobody reads it.

    A worker that is killed closes its end of our output, and the console of Prefect's log would then end the run (rich,
    on_broken_pipe).
    """

    def write(self, data: Any, /) -> int:
        """Write, or discard the data if nobody reads."""
        try:
            return super().write(data)
        except BrokenPipeError:
            with Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), self.fileno())
            return len(data)


def _pipe_safe(stream: TextIO) -> TextIO:
    output = io.BufferedWriter(PipeSafeOutput(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(output, "utf-8", "backslashreplace", line_buffering=True)


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names, as Prefect's engine does."""
    run = os.environ["PREFECT__FLOW_RUN_ID"]
    for name in filter(None, os.environ.get("PREFECT_LOGGING_EXTRA_LOGGERS", "").split(",")):
        logging.getLogger(name).setLevel(logging.INFO)  # Prefect sets their handler but not their level
    sys.stdout, sys.stderr = _pipe_safe(sys.stdout), _pipe_safe(sys.stderr)
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
