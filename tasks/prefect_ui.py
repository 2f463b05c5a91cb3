"""Running stages in the Prefect UI: progress artifacts, and a vendor's log as one folded artifact.

Nothing here slows or ends a stage: ticks only store a number, and a thread sends it to the server at intervals.
"""

import contextlib
import logging
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from html import escape
from pathlib import Path
from typing import IO
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL

from nightjar.progress import Listener
from tasks.markdown import escape_markdown

log = logging.getLogger("nightjar.stage")

OUR_LOGGERS = ("nightjar", "models", "targets", "tasks")

FIRST_S = 10.0  # a shorter stage gets no progress artifact
EVERY_S = 5.0
LOG = "toolchain.txt"  # in the artifact's folder, beside what the toolchain made
LAST_LINES = 20  # of a log, shown unfolded with a failure
FOLDED_LINES = 400  # in the artifact
LONGEST_LINE = 300
LOUD = re.compile(r"(E |W |ERROR|WARNING|\w*(Error|Warning): )")


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
    progress = Progress(label, owner)

    def listener(done: int, total: int) -> None:
        on_progress(done, total)
        progress.tick(done, total)

    try:
        yield listener
        progress.percent = 100.0
    finally:
        progress.end()


class Progress:
    """A progress artifact, created once a stage has taken long, and updated by a thread with its own client."""

    def __init__(self, label: str, owner: dict[str, UUID | None]) -> None:
        self.label, self.owner = label, owner
        self.percent = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tick(self, done: int, total: int) -> None:
        """Store the progress; the first call starts the thread."""
        self.percent = min(100.0, 100.0 * done / max(1, total))
        if self._thread is None:
            self._thread = threading.Thread(target=self._send, name=f"progress of {self.label}", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Send the last value if one was sent before; waits at most two seconds for the server."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _send(self) -> None:
        if self._ended.wait(FIRST_S):
            return
        try:
            with get_client(sync_client=True) as client:  # this thread's own: a thread starts with an empty context
                sent = self.percent
                created = ArtifactCreate(
                    type="progress",
                    key=f"progress-{artifact_key(self.label)}",
                    description=f"progress of {self.label}",
                    data=sent,
                )
                artifact = client.create_artifact(created.model_copy(update=self.owner)).id
                ended = False
                while not ended:
                    ended = self._ended.wait(EVERY_S)
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
    collected = _ToolchainLog(out.parent)
    token = _current_log.set(collected)
    _sdk.setLevel(logging.DEBUG)
    began, failure = time.monotonic(), ""
    try:
        yield
    except Exception as error:
        failure = str(error)
        raise
    finally:
        _current_log.reset(token)
        if collected.lines:
            with contextlib.suppress(OSError):  # a full disk has its own message
                collected.join(out / LOG)
            took = time.monotonic() - began
            summary = (
                f"{collected.lines:,} lines of the toolchain in {took:.0f} s, "
                f"{collected.loud:,} of them warnings or errors"
            )
            log.info("%s: %s; kept as %s", label, summary, LOG if not failure else out / LOG)
            with contextlib.suppress(Exception):  # an unreachable server must not hide the failure
                create_artifacts([_log_artifact(label, summary, collected, failure)])


class _ToolchainLog:
    """What a stage's toolchain calls print; one file per call, because parts may be built in parallel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = self.loud = 0
        self.last: deque[str] = deque(maxlen=FOLDED_LINES)
        self._files: dict[int, IO[str]] = {}  # by the thread that reads a call's output
        self._lock = threading.Lock()
        for stale in folder.glob("toolchain-*.txt"):  # of a killed run
            stale.unlink(missing_ok=True)

    def add(self, thread: int, line: str) -> None:
        with self._lock:
            if thread not in self._files:
                path = self.folder / f"toolchain-{len(self._files) + 1}.txt"
                self._files[thread] = path.open("w", encoding="utf-8")
            print(line, file=self._files[thread], flush=True)
            self.lines += 1
            self.loud += LOUD.match(line) is not None
            self.last.append(line)

    def join(self, path: Path) -> None:
        """Write the lines of all calls into one file, one call after the other."""
        for call in self._files.values():
            call.close()
        with self._lock, path.open("wb") as joined:
            for call in self._files.values():
                with Path(call.name).open("rb") as lines:
                    shutil.copyfileobj(lines, joined)
                Path(call.name).unlink()


class _SdkLines(logging.Filter):
    """Move what toolchains print from the log into the stage's toolchain log, if there is one."""

    def filter(self, record: logging.LogRecord) -> bool:
        collected = _current_log.get()
        if collected is None or record.levelno > logging.DEBUG:
            return True
        if record.msg == "%s":  # only a toolchain's lines are logged in this form
            collected.add(record.thread or 0, record.getMessage())
        return False


def _log_artifact(label: str, summary: str, collected: _ToolchainLog, failure: str) -> ArtifactCreate:
    lines = [line[:LONGEST_LINE] for line in collected.last]
    text = [f"# {'Failed' if failure else 'Log'} · {label}", ""]
    if failure:
        shown = "\n".join(lines[-LAST_LINES:]).replace("```", "'''")
        text += [f"**{escape_markdown(failure)}**", "", "```", shown, "```", ""]
    # One block of HTML without an empty line: Markdown inside would not fold, in either of Prefect's UIs.
    folded = "\n".join(escape(line) for line in lines)
    text += [f"{summary}. The whole log is `{LOG}` in the artifact's folder.", ""]
    text += [f"<details><summary>the last {len(lines)} lines</summary><pre>{folded}</pre></details>", ""]
    return ArtifactCreate(type="markdown", key=f"log-{artifact_key(label)}", description=summary, data="\n".join(text))


def _owner() -> dict[str, UUID | None] | None:
    """Return the runs that an artifact created here belongs to; None outside a flow run on a server."""
    flow = FlowRunContext.get()
    if flow is None or flow.flow_run is None or not PREFECT_API_URL.value():
        return None
    task = TaskRunContext.get()
    return {"flow_run_id": flow.flow_run.id, "task_run_id": task.task_run.id if task is not None else None}


_current_log: ContextVar[_ToolchainLog | None] = ContextVar("toolchain log", default=None)
_sdk = logging.getLogger("nightjar.process")
_sdk.addFilter(_SdkLines())
for _name in OUR_LOGGERS:
    if logging.getLogger(_name).level == logging.NOTSET:  # Prefect 3.8.8 gives extra loggers its handlers but no
        logging.getLogger(_name).setLevel(logging.INFO)  # level: only warnings would appear
