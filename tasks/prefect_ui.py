"""Running stages in the Prefect UI: progress artifacts, and a vendor's log as one folded artifact.

Nothing here slows or ends a stage: ticks only store a number, and a thread sends it to the server at intervals.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL

from nightjar.progress import Listener
from tasks.markdown import render_markdown

log = logging.getLogger("nightjar.stage")

FIRST_S = 10.0  # a shorter stage gets no progress artifact
EVERY_S = 5.0
LOG = "toolchain.txt"  # in the artifact's folder, beside what the toolchain made
FOLDED_LINES = 400  # of a log, in the artifact
LONGEST_LINE = 300
LOUD = re.compile(r"(E |W |ERROR|WARNING|\w*(Error|Warning): )")

_Line = tuple[int | None, str]  # of a toolchain: the thread that reads a call's output, because parts build in parallel


def create_artifacts(artifacts: Iterable[ArtifactCreate]) -> None:
    """Attach artifacts to the current flow run and task; does nothing without a server."""
    if (owner := _owner()) is None:
        return
    # One client for all: each of Prefect's create_…_artifact opens its own, which takes a fifth of a second.
    with get_client(sync_client=True) as client:
        for artifact in artifacts:
            client.create_artifact(artifact.model_copy(update=owner))


def artifact_key(text: str) -> str:
    """Turn a name into a valid key of a Prefect artifact: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- progress ----------------------------------------------------------------------------------


@contextlib.contextmanager
def progress_artifact(label: str, on_progress: Listener) -> Iterator[Listener]:
    """Yield a listener that passes ticks to `on_progress` and, in a run on a server, to a progress artifact."""
    if (owner := _owner()) is None:
        yield on_progress
        return
    progress = _Progress(label, owner)

    def listener(done: int, total: int) -> None:
        on_progress(done, total)
        progress.percent = min(100.0, 100.0 * done / max(1, total))
        if progress.ident is None:
            progress.start()

    try:
        yield listener
        progress.percent = 100.0
    finally:
        progress.ended.set()
        if progress.ident is not None:
            progress.join(2.0)  # for the server


class _Progress(threading.Thread):
    """A progress artifact, created once a stage has taken long, then updated at intervals and when it has ended."""

    def __init__(self, label: str, owner: dict[str, UUID | None]) -> None:
        super().__init__(name=f"progress of {label}", daemon=True)
        self.label, self.owner = label, owner
        self.percent, self.ended = 0.0, threading.Event()

    def run(self) -> None:
        if self.ended.wait(FIRST_S):
            return
        try:
            with get_client(sync_client=True) as client:  # this thread's own: a thread starts with an empty context
                sent = self.percent
                key = f"progress-{artifact_key(self.label)}"
                created = ArtifactCreate(type="progress", key=key, description=self.name, data=sent)
                artifact = client.create_artifact(created.model_copy(update=self.owner)).id
                ended = False
                while not ended:
                    ended = self.ended.wait(EVERY_S)
                    if (percent := self.percent) != sent:
                        client.update_artifact(artifact, ArtifactUpdate(data=percent))
                        sent = percent
        except Exception as error:  # of the server or the network: the stage continues without a progress artifact
            log.debug("the progress of %s is not shown: %s", self.label, error)


# -- a vendor's log ----------------------------------------------------------------------------


@contextlib.contextmanager
def toolchain_log(label: str, out: Path) -> Iterator[None]:
    """Write what toolchains print inside to a file of `out`, and log one line about it.

    On a server the task gets an artifact with that line, the end of the log, and the error if there was one.
    """
    printed: list[_Line] = []
    token = _printed.set(printed)
    _sdk.setLevel(logging.DEBUG)
    began, failure = time.monotonic(), ""
    try:
        yield
    except Exception as error:
        failure = str(error)
        raise
    finally:
        _printed.reset(token)
        if printed:
            calls = list(dict.fromkeys(call for call, _ in printed))
            with contextlib.suppress(OSError), (out / LOG).open("w", encoding="utf-8") as file:
                # One call after the other. A full disk has its own message.
                file.writelines(f"{line}\n" for _, line in sorted(printed, key=lambda each: calls.index(each[0])))
            loud = sum(LOUD.match(line) is not None for _, line in printed)
            took = time.monotonic() - began
            summary = f"{len(printed):,} lines of the toolchain in {took:.0f} s, {loud:,} of them warnings or errors"
            log.info("%s: %s; kept as %s", label, summary, LOG if not failure else out / LOG)
            with contextlib.suppress(Exception):  # an unreachable server must not hide the failure
                lines = [line[:LONGEST_LINE] for _, line in printed[-FOLDED_LINES:]]
                values = {"label": label, "summary": summary, "failure": failure, "lines": lines, "file": LOG}
                shown = render_markdown("toolchain_log.md", **values)
                key = f"log-{artifact_key(label)}"
                create_artifacts([ArtifactCreate(type="markdown", key=key, description=summary, data=shown)])


class _SdkLines(logging.Filter):
    """Move what toolchains print from the log into the stage's toolchain log, if there is one."""

    def filter(self, record: logging.LogRecord) -> bool:
        printed = _printed.get()
        if printed is None or record.levelno > logging.DEBUG:
            return True
        if record.msg == "%s":  # only a toolchain's lines are logged in this form
            printed.append((record.thread, record.getMessage()))
        return False


def _owner() -> dict[str, UUID | None] | None:
    """Return the runs that an artifact created here belongs to; None outside a flow run on a server."""
    flow = FlowRunContext.get()
    if flow is None or flow.flow_run is None or not PREFECT_API_URL.value():
        return None
    task = TaskRunContext.get()
    return {"flow_run_id": flow.flow_run.id, "task_run_id": task.task_run.id if task is not None else None}


_printed: ContextVar[list[_Line] | None] = ContextVar("printed", default=None)
_sdk = logging.getLogger("nightjar.process")
_sdk.addFilter(_SdkLines())
for _name in ("nightjar", "models", "targets", "tasks"):
    if logging.getLogger(_name).level == logging.NOTSET:  # Prefect 3.8.8 gives extra loggers its handlers but no
        logging.getLogger(_name).setLevel(logging.INFO)  # level: only warnings would appear
