"""What a person sees of a running stage in the Prefect UI: how far it is, and a vendor's log folded to a line.

Nothing here slows or ends a stage: it leaves a number, and a thread of its own tells the server now and then.
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

OURS = ("nightjar", "models", "targets", "tasks")

FIRST_S = 10.0  # a stage that ends sooner has no progress worth a look
EVERY_S = 5.0
LOG = "toolchain.txt"  # in the artifact's folder, beside what the toolchain made
LAST_LINES = 20  # of a log, open to be read with a failure
FOLDED_LINES = 400  # in the artifact
LONGEST_LINE = 300
LOUD = re.compile(r"(E |W |ERROR|WARNING|\w*(Error|Warning): )")


def create_artifacts(artifacts: Iterable[ArtifactCreate]) -> None:
    """Show artifacts with the flow run and task that we are in; without a server there is nobody to show them to."""
    if (owner := _owner()) is None:
        return
    # One client for all: each of Prefect's create_…_artifact opens its own, a fifth of a second.
    with get_client(sync_client=True) as client:
        for artifact in artifacts:
            client.create_artifact(artifact.model_copy(update=owner))


def artifact_key(text: str) -> str:
    """Write a name as Prefect takes it for the key of an artifact: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- progress ----------------------------------------------------------------------------------


@contextlib.contextmanager
def progress_artifact(label: str, show: Listener) -> Iterator[Listener]:
    """Give a listener that passes ticks on to `show` and, in a run on a server, to a progress artifact."""
    if (owner := _owner()) is None:
        yield show
        return
    progress = Progress(label, owner)

    def listener(done: int, total: int) -> None:
        show(done, total)
        progress.tick(done, total)

    try:
        yield listener
        progress.tick(1, 1, late=False)
    finally:
        progress.end()


class Progress:
    """One progress artifact: made once a stage has taken long, then updated by one client in a thread of its own."""

    def __init__(self, label: str, owner: dict[str, UUID | None]) -> None:
        self.label, self.owner = label, owner
        self._percent = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tick(self, done: int, total: int, late: bool = True) -> None:
        """Note where the stage is; `late` starts the telling if nothing has."""
        self._percent = min(100.0, 100.0 * done / max(1, total))
        if self._thread is None and late:
            self._thread = threading.Thread(target=self._tell, name=f"progress of {self.label}", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Tell the last number, if any was told, without waiting long for a server that is away."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _tell(self) -> None:
        if self._ended.wait(FIRST_S):
            return
        told, artifact = -1.0, None
        try:
            # a thread begins with an empty context, so this client is its own
            with get_client(sync_client=True) as client:
                while True:
                    over, percent = self._ended.is_set(), self._percent
                    if artifact is None:
                        wanted = ArtifactCreate(
                            type="progress",
                            key=f"progress-{artifact_key(self.label)}",
                            description=f"how far {self.label} is",
                            data=percent,
                        )
                        artifact = client.create_artifact(wanted.model_copy(update=self.owner)).id
                    elif percent != told:
                        client.update_artifact(artifact, ArtifactUpdate(data=percent))
                    told = percent
                    if over:
                        return
                    self._ended.wait(EVERY_S)
        except Exception as error:  # of the server or the way there: the stage goes on without being watched
            log.debug("the progress of %s is not shown: %s", self.label, error)


# -- a vendor's log ----------------------------------------------------------------------------


@contextlib.contextmanager
def toolchain_log(label: str, out: Path) -> Iterator[None]:
    """Keep what toolchains print inside in a file of `out`, and say of it one line.

    On a server the task gets an artifact with that line, the end of the log, and what made it fail if it did.
    """
    kept = _KeptLog(out.parent)
    token = _keeping.set(kept)
    _sdk.setLevel(logging.DEBUG)
    began, failure = time.monotonic(), ""
    try:
        yield
    except Exception as error:
        failure = str(error)
        raise
    finally:
        _keeping.reset(token)
        if kept.lines:
            with contextlib.suppress(OSError):  # a full disk has its own message
                kept.put_together(out / LOG)
            took = time.monotonic() - began
            said = f"{kept.lines:,} lines of the toolchain in {took:.0f} s, {kept.loud:,} of them warnings or errors"
            log.info("%s: %s; kept as %s", label, said, LOG if not failure else out / LOG)
            with contextlib.suppress(Exception):  # a server that is away must not hide what happened
                create_artifacts([_log_artifact(label, said, kept, failure)])


class _KeptLog:
    """The lines of one stage's calls, a file per call as they come: parts may be built at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = self.loud = 0
        self.last: deque[str] = deque(maxlen=FOLDED_LINES)
        self._files: dict[int, IO[str]] = {}  # by the thread that reads a call's output
        self._lock = threading.Lock()
        for stale in folder.glob("toolchain-*.txt"):  # of a run that was killed
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

    def put_together(self, path: Path) -> None:
        """Write all calls' lines into one file, one call after the other."""
        for call in self._files.values():
            call.close()
        with self._lock, path.open("wb") as whole:
            for call in self._files.values():
                with Path(call.name).open("rb") as lines:
                    shutil.copyfileobj(lines, whole)
                Path(call.name).unlink()


class _SdkLines(logging.Filter):
    """Take what toolchains print out of the log, where a stage keeps it."""

    def filter(self, record: logging.LogRecord) -> bool:
        kept = _keeping.get()
        if kept is None or record.levelno > logging.DEBUG:
            return True
        if record.msg == "%s":  # only a toolchain's lines are logged as they are
            kept.add(record.thread or 0, record.getMessage())
        return False


def _log_artifact(label: str, said: str, kept: _KeptLog, failure: str) -> ArtifactCreate:
    lines = [line[:LONGEST_LINE] for line in kept.last]
    whole = f"{said}. The whole log is `{LOG}` in the artifact's folder."
    text = [f"# {'Failed' if failure else 'Log'} · {label}", ""]
    if failure:
        shown = "\n".join(lines[-LAST_LINES:]).replace("```", "'''")
        text += [f"**{escape_markdown(failure)}**", "", "```", shown, "```", ""]
    # One block of HTML without an empty line: what is markdown would not fold with it, in either of Prefect's UIs.
    folded = "\n".join(escape(line) for line in lines)
    text += [whole, "", f"<details><summary>the last {len(lines)} lines</summary><pre>{folded}</pre></details>", ""]
    return ArtifactCreate(type="markdown", key=f"log-{artifact_key(label)}", description=said, data="\n".join(text))


def _owner() -> dict[str, UUID | None] | None:
    """Say which runs an artifact made here belongs to; None outside of a flow run on a server."""
    flow = FlowRunContext.get()
    if flow is None or flow.flow_run is None or not PREFECT_API_URL.value():
        return None
    task = TaskRunContext.get()
    return {"flow_run_id": flow.flow_run.id, "task_run_id": task.task_run.id if task is not None else None}


_keeping: ContextVar[_KeptLog | None] = ContextVar("keeping", default=None)
_sdk = logging.getLogger("nightjar.process")
_sdk.addFilter(_SdkLines())
for _name in OURS:
    if logging.getLogger(_name).level == logging.NOTSET:  # Prefect hands extra loggers its handlers and no level: only
        logging.getLogger(_name).setLevel(logging.INFO)  # warnings would come through (3.8.8)
