"""`@stage`: a function from artifacts to an artifact, executed once per content of its inputs.

The key is ours, not Prefect's (docs/decisions/001-stage-key.md): stage name, inputs by content, options, the import
closure of the code, the versions of the libraries it imports, board facts. If the store has the result, the Prefect
task ends as `Cached`. So a retry, the next night and another worker on this store all continue in the same way.

Without a server there is no Prefect run around a stage, and the same body is called directly.
"""

import contextlib
import functools
import inspect
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed
from pydantic import BaseModel

from nightjar.errors import NightjarError
from nightjar.files import digest, storage_errors
from nightjar.plugins.registry import Plugin
from nightjar.progress import StageOutcome, listening
from nightjar.store.artifact import NOT_STORED, Artifact, Record, Source, Store
from nightjar.store.fingerprint import closure
from nightjar.store.remote import open_store
from nightjar.store.usage import Usage
from tasks.prefect_ui import progress_artifact, toolchain_log

log = logging.getLogger("nightjar.stage")

LOG_EVERY_S = 15.0
SHOWN_DIFFERENCES = 3  # in the reason for a miss


class Pending(NamedTuple):
    """An artifact that a plan cannot know yet."""

    stage: str


@dataclass(eq=False)
class Run:
    """One flow run's settings and the outcomes of its stages."""

    store: Store
    refresh: frozenset[str] = frozenset()
    plan: bool = False
    board_wait_s: float | None = None  # for a board in use by others; None: without limit
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    on_outcome: Callable[[StageOutcome], None] = lambda outcome: None
    outcomes: list[StageOutcome] = field(default_factory=list, init=False)
    model: str = field(default="", init=False)  # that it ports: what was made for another explains no miss

    def __post_init__(self) -> None:
        self.usage = Usage(self.store)

    def finish(self, outcome: StageOutcome) -> StageOutcome:
        """Record and report the outcome of a stage."""
        self.outcomes.append(outcome)
        self.on_outcome(outcome)
        return outcome


_run: ContextVar[Run] = ContextVar("run")


@contextlib.contextmanager
def running(run: Run) -> Iterator[Run]:
    """Make `run` the run of all stages called inside."""
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)
        run.usage.close()


def current_or_new_run(refresh: tuple[str, ...], board_wait_s: float | None = None) -> AbstractContextManager[Run]:
    """Use the caller's run for the stages called inside, or a new one on the default store if there is none."""
    run = _run.get(None)
    return separate_run(refresh, board_wait_s) if run is None else contextlib.nullcontext(run)


def separate_run(refresh: tuple[str, ...], board_wait_s: float | None = None) -> AbstractContextManager[Run]:
    """Use a run of their own for the stages called inside; it reports to the caller's run if there is one."""
    outer = _run.get(None)
    if outer is None:
        return running(Run(open_store(), frozenset(refresh), False, board_wait_s, _progress_logger()))
    own = replace(outer, refresh=frozenset(refresh), board_wait_s=board_wait_s)
    own.usage = Usage(outer.store, outer.usage)  # gc keeps a night's cells until the night is in the history
    return running(own)


def _progress_logger() -> Callable[[str, int, int], None]:
    """Return a listener that logs progress at most every 15 seconds, for the run's log in the Prefect UI."""
    logged_at = time.monotonic()

    def log_progress(stage: str, done: int, total: int) -> None:
        nonlocal logged_at
        if total and (done == total or time.monotonic() - logged_at > LOG_EVERY_S):
            logged_at = time.monotonic()
            log.info("%s: %d of %d", stage, done, total)

    return log_progress


def current_run() -> Run:
    """Return the run that the calling code belongs to."""
    return _run.get()


Body = Callable[..., dict[str, str] | None]


def stage(body: Body | None = None, *, view: Callable[[Path], None] | None = None) -> Callable[..., Any]:
    """Make a cached stage of `body(*, inputs…, options…, out, work)`.

    The body gets every Artifact and Source as a path, writes its files into the empty folder `out`, may keep in `work`
    what a killed run must not lose, and returns meta for the record. The stage returns an Artifact, or a Pending in a
    plan. `view` is called with an artifact's folder each time the stage returns it, to write what depends on the
    store's place and therefore cannot be content.
    """
    if body is None:
        return functools.partial(stage, view=view)
    name, signature = body.__name__, inspect.signature(body)

    # One task without retries per stage; NO_CACHE because the store decides and verifies what it returns.
    @task(name=name, description=inspect.getdoc(body), cache_policy=NO_CACHE, task_run_name="{label}")
    def run_stage(label: str, arguments: dict[str, Any]) -> State[Any]:
        try:
            outcome, artifact = _resolve(label, body, arguments)
        except (NightjarError, OSError) as error:  # raised, it would be a traceback in the run's log
            return Failed(message=f"{type(error).__name__}: {error}", data=error)
        if outcome.cached:
            return Completed(name="Cached", message=f"taken from the store: {outcome.key[:12]}", data=artifact)
        return Completed(message=f"executed: {outcome.why}", data=artifact)

    @functools.wraps(body)
    def call(*, label: str = "", **arguments: Any) -> Any:
        run, label = current_run(), f"{name} {label}".strip()
        signature.bind(**arguments, **{own: None for own in ("out", "work") if own in signature.parameters})
        artifact: Any
        if FlowRunContext.get() is None or run.plan:
            _, artifact = _resolve(label, body, arguments)
        else:
            artifact = run_stage(label, arguments)
            if isinstance(artifact, State):  # what a task returns to a direct caller when its body returns a state
                artifact = artifact.result()
        if view is not None and isinstance(artifact, Artifact) and not run.plan:
            view(run.store.path(artifact))
        return artifact

    return call


def _resolve(label: str, body: Body, arguments: dict[str, Any]) -> tuple[StageOutcome, Artifact | Pending]:
    run, name, pending = current_run(), body.__name__, Pending(label)
    waits_for = sorted({value.stage for value in arguments.values() if isinstance(value, Pending)})
    if waits_for:
        return run.finish(StageOutcome(label, 0, False, f"depends on {', '.join(waits_for)}")), pending
    parts = key_parts(name, body, arguments)
    key = digest(parts)[:24]
    run.on_progress(label, 0, 0)
    if not run.plan or run.store.root.exists():  # a plan creates no store
        run.usage.note(name, key)
    record, why = _look_up(name, key, parts)
    if record is None and not run.plan:
        with run.store.lock(name, key, lambda: log.warning("%s: waiting for another run's result", name)):
            record, _ = _look_up(name, key, parts, has_lock=True)  # the other run may have made it
            if record is None:
                log.info("%s: running (%s)", label, why)
                record = _execute(label, body, arguments, key, parts)
                return run.finish(StageOutcome(label, record.seconds, False, why, key)), record.artifact
    if record is None:
        return run.finish(StageOutcome(label, 0, False, why, key)), pending
    return run.finish(StageOutcome(label, 0, True, "", key)), record.artifact


def _look_up(name: str, key: str, parts: dict[str, str], has_lock: bool = False) -> tuple[Record | None, str]:
    run = current_run()
    if name in run.refresh and all(outcome.key != key for outcome in run.outcomes):
        return None, "refresh was requested"
    record, why = run.store.find(name, key, has_lock)
    return record, _explain_miss(name, parts) if why == NOT_STORED else why


def _execute(label: str, body: Body, arguments: dict[str, Any], key: str, parts: dict[str, str]) -> Record:
    run, name = current_run(), body.__name__
    work = run.store.work(name, key)
    own = {"out": work / "out"}
    with storage_errors():
        shutil.rmtree(own["out"], ignore_errors=True)  # left by a killed run
        own["out"].mkdir(parents=True)
        if "work" in inspect.signature(body).parameters:
            own["work"] = work / "kept"
            own["work"].mkdir(exist_ok=True)
    paths = {argument: _as_path(run.store, value) for argument, value in arguments.items()}
    start = time.perf_counter()
    with (
        progress_artifact(label, functools.partial(run.on_progress, label)) as listener,
        listening(listener),
        storage_errors(),
        toolchain_log(label, own["out"]),
    ):
        meta = body(**paths, **own)
    seconds = time.perf_counter() - start
    record = run.store.publish(name, key, own["out"], parts, meta or {}, seconds, run.model)
    shutil.rmtree(work, ignore_errors=True)
    return record


def _as_path(store: Store, value: Any) -> Any:
    if isinstance(value, Artifact):
        return store.path(value)
    return value.path if isinstance(value, Source) else value


def key_parts(name: str, body: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, str]:
    """Return everything a stage's key is made of, one line of text each."""
    parts = {"stage": name}
    modules = [body.__module__]
    for argument, value in arguments.items():
        if isinstance(value, Artifact | Source):
            parts[f"input {argument}"] = value.sha256
        elif plugins := [each for each in (value if isinstance(value, tuple) else [value]) if isinstance(each, Plugin)]:
            parts[f"plug-in {argument}"] = " ".join(each.module for each in plugins)
            for each in plugins:
                modules += [each.module, *each.tools()]
                parts |= {f"sdk {package}": version for package, version in each.sdk().items()}
        elif hasattr(value, "identity"):
            parts |= _flatten(argument, value.identity())
        else:
            parts |= _flatten(argument, value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
    files, libraries = closure(modules)
    parts |= {f"code {path}": sha256 for path, sha256 in files.items()}
    return parts | {f"library {library}": version for library, version in libraries.items()}


def _flatten(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key in sorted(value) for k, v in _flatten(f"{name}.{key}", value[key]).items()}
    return {name: str(value)}


def _explain_miss(name: str, parts: dict[str, str]) -> str:
    """Describe how a key differs from the nearest earlier one of this stage with the same model and target."""
    run = current_run()
    plug_ins = {part: module for part, module in parts.items() if part.startswith("plug-in ")}
    alike = (record for record in run.store.records(name) if record.model in ("", run.model))
    earlier = [record.parts for record in alike if plug_ins.items() <= record.parts.items()]
    if not earlier:
        return f"first run of {run.model}" if run.model else "first run"
    changes = [(old, {part for part, _ in old.items() ^ parts.items()}) for old in earlier]
    old, differing = min(changes, key=lambda change: len(change[1]))
    shown = [_difference(part, old.get(part), parts.get(part)) for part in sorted(differing)[:SHOWN_DIFFERENCES]]
    more = len(differing) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _difference(part: str, old: str | None, new: str | None) -> str:
    if old is None:
        return f"{part} is new"
    if new is None:
        return f"{part} was removed"
    short = len(old) < 24 and len(new) < 24
    return f"{part} {old or 'empty'} → {new or 'empty'}" if short else f"{part} changed"
