"""`@stage`: a function from artifacts to an artifact, run once per content of what goes into it.

The key is ours, not Prefect's (docs/decisions/001-stage-key.md): stage name, inputs by content, options, the import
closure of the code, the versions of the libraries it imports, board facts. A result found in the store ends the Prefect
task as `Cached`; so a retry of a failed run, tomorrow's run and a second worker on this store all take the same way.

Without a server there is no Prefect run around a stage and the same body is called directly.
"""

import contextlib
import functools
import inspect
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, overload

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
from nightjar.store.artifact import Artifact, Record, Source, Store
from nightjar.store.fingerprint import closure
from nightjar.store.remote import open_store
from nightjar.store.usage import Usage
from tasks.prefect_ui import progress_artifact, toolchain_log

log = logging.getLogger("nightjar.stage")


class Pending(NamedTuple):
    """Stand for an artifact that a plan cannot know yet."""

    stage: str


class Run:
    """One flow run's settings, and what became of its stages."""

    def __init__(
        self,
        store: Store,
        refresh: frozenset[str] = frozenset(),
        plan: bool = False,
        board_wait_s: float | None = None,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        on_outcome: Callable[[StageOutcome], None] = lambda outcome: None,
    ) -> None:
        self.store, self.refresh, self.plan = store, refresh, plan
        self.on_progress, self.on_outcome = on_progress, on_outcome
        self.board_wait_s = board_wait_s  # for a board that somebody else holds; None: as long as it takes
        self.outcomes: list[StageOutcome] = []
        self.usage = Usage(store)


_run: ContextVar[Run] = ContextVar("run")


@contextlib.contextmanager
def running(run: Run) -> Iterator[Run]:
    """Let the stages called inside belong to `run`."""
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)
        run.usage.close()


@contextlib.contextmanager
def current_or_new_run(refresh: tuple[str, ...], board_wait_s: float | None = None) -> Iterator[Run]:
    """Let the stages called inside belong to the caller's run, or to a new one on the default store."""
    if (run := _run.get(None)) is not None:
        yield run
        return
    run = Run(open_store(), frozenset(refresh), board_wait_s=board_wait_s, on_progress=_LoggedProgress())
    with running(run):
        yield run


@contextlib.contextmanager
def separate_run(refresh: tuple[str, ...], board_wait_s: float | None = None) -> Iterator[Run]:
    """Let the stages called inside belong to a run of their own, shown and told where the caller's run is, if any."""
    outer = _run.get(None)
    if outer is None:
        with current_or_new_run(refresh, board_wait_s) as run:
            yield run
        return
    own = Run(outer.store, frozenset(refresh), outer.plan, board_wait_s, outer.on_progress, outer.on_outcome)
    own.usage = Usage(outer.store, outer.usage)  # what a night's cells made stays until the night is in the history
    with running(own):
        yield own


class _LoggedProgress:
    """Log where a stage is, at most every 15 seconds: what a person sees in the Prefect UI."""

    def __init__(self) -> None:
        self.said_at = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if total and (done == total or time.monotonic() - self.said_at > 15):
            self.said_at = time.monotonic()
            log.info("%s: %d of %d", stage, done, total)


def current_run() -> Run:
    """Return the run that the calling code belongs to."""
    return _run.get()


def earlier_results(stage: str) -> list[Path]:
    """List the folders of what a stage made before in this store, newest first; nobody vouches for their content."""
    run = _run.get(None)
    return [run.store.path(record.artifact) for record in run.store.records(stage)] if run is not None else []


Body = Callable[..., dict[str, str] | None]


@overload
def stage(body: Body) -> Callable[..., Any]: ...
@overload
def stage(*, view: Callable[[Path], None]) -> Callable[[Body], Callable[..., Any]]: ...
def stage(body: Body | None = None, *, view: Callable[[Path], None] | None = None) -> Callable[..., Any]:
    """Make a cached stage of `body(*, inputs…, options…, out, work)`.

    The body gets every Artifact and Source as a path, writes its files into the empty folder `out`, may keep what a
    killed run should not lose in `work`, and returns meta for the record. The stage returns an Artifact, or a Pending
    when planning. `view` is called with an artifact's folder each time it is given out: to write what depends on where
    the store lies and so cannot be content.
    """
    if body is None:
        return functools.partial(stage, view=view)
    name = body.__name__
    signature = inspect.signature(body)

    def resolve(label: str, arguments: dict[str, Any]) -> tuple[StageOutcome, Artifact | Pending]:
        outcome, artifact = _resolve(name, label, body, arguments)
        if view is not None and isinstance(artifact, Artifact) and not current_run().plan:
            view(current_run().store.path(artifact))
        return outcome, artifact

    def run_stage(label: str, arguments: dict[str, Any]) -> State[Any]:
        try:
            outcome, artifact = resolve(label, arguments)
        except (NightjarError, OSError) as error:  # a line says it: raised, it would be a traceback in the run's log
            return Failed(message=f"{type(error).__name__}: {error}", data=error)
        if outcome.cached:
            return Completed(name="Cached", message=f"taken from the store: {outcome.key[:12]}", data=artifact)
        return Completed(message=f"ran because {outcome.why}", data=artifact)

    # One retry-free task per stage; NO_CACHE because the store decides, and it verifies what it gives out.
    prefect_task = task(name=name, description=inspect.getdoc(body), cache_policy=NO_CACHE, task_run_name="{label}")(
        run_stage
    )

    @functools.wraps(body)
    def call(*, label: str = "", **arguments: Any) -> Artifact | Pending:
        label = f"{name} {label}".strip()
        signature.bind(**arguments, **{own: None for own in ("out", "work") if own in signature.parameters})
        if FlowRunContext.get() is not None and not current_run().plan:
            returned = prefect_task(label, arguments)
            # A task that returns a state gives that state back to a direct caller.
            artifact: Artifact = returned.result() if isinstance(returned, State) else returned
            return artifact
        return resolve(label, arguments)[1]

    return call


def _resolve(
    name: str, label: str, body: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[StageOutcome, Artifact | Pending]:
    run = current_run()
    waits_for = sorted({value.stage for value in arguments.values() if isinstance(value, Pending)})
    if waits_for:
        why = f"depends on {', '.join(waits_for)}"
        return _finish(run, StageOutcome(name=label, seconds=0, cached=False, why=why), label)
    parts = key_parts(name, body, arguments)
    key = digest(parts)[:24]
    run.on_progress(label, 0, 0)
    if not run.plan or run.store.root.exists():  # a plan makes nothing
        run.usage.note(name, key)
    record, why = _look_up(run, name, key, parts)
    if record is not None:
        return _finish(run, StageOutcome(name=label, seconds=0, cached=True, why="", key=key), record.artifact)
    if run.plan:
        return _finish(run, StageOutcome(name=label, seconds=0, cached=False, why=why, key=key), label)
    with run.store.lock(name, key, on_wait=lambda: log.warning("%s: another run is making it; waiting", name)):
        record, _ = _look_up(run, name, key, parts, held=True)  # the run we waited for may have made it
        if record is not None:
            return _finish(run, StageOutcome(name=label, seconds=0, cached=True, why="", key=key), record.artifact)
        log.info("%s: running, %s", label, why)
        with (
            progress_artifact(label, lambda done, total: run.on_progress(label, done, total)) as heard,
            listening(heard),
        ):
            record = _execute(run, label, name, key, parts, body, arguments)
    return _finish(
        run, StageOutcome(name=label, seconds=record.seconds, cached=False, why=why, key=key), record.artifact
    )


def _finish(run: Run, outcome: StageOutcome, result: Artifact | str) -> tuple[StageOutcome, Artifact | Pending]:
    run.outcomes.append(outcome)
    run.on_outcome(outcome)
    return outcome, Pending(result) if isinstance(result, str) else result


def _look_up(run: Run, name: str, key: str, parts: dict[str, str], held: bool = False) -> tuple[Record | None, str]:
    already = any(outcome.key == key for outcome in run.outcomes)
    if name in run.refresh and not already:
        return None, "refresh was asked for"
    record, why = run.store.find(name, key, held)
    if why == "never made":
        why = _explain_miss(run.store, name, parts)
    return record, why


def _execute(
    run: Run,
    label: str,
    name: str,
    key: str,
    parts: dict[str, str],
    body: Callable[..., Any],
    arguments: dict[str, Any],
) -> Record:
    work = run.store.work(name, key)
    out = work / "out"
    with storage_errors():
        shutil.rmtree(out, ignore_errors=True)  # half-written by a run that was killed
        out.mkdir(parents=True)
    own: dict[str, Path] = {"out": out}
    if "work" in inspect.signature(body).parameters:
        own["work"] = work / "kept"
        with storage_errors():
            own["work"].mkdir(exist_ok=True)
    start = time.perf_counter()
    with storage_errors(), toolchain_log(label, out):
        meta = body(**{key: _as_path(run.store, value) for key, value in arguments.items()}, **own)
    record = run.store.publish(name, key, out, parts, meta or {}, time.perf_counter() - start)
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
        elif plugins := _plugins(value):
            parts[f"plug-in {argument}"] = " ".join(each.module for each in plugins)
            for each in plugins:
                modules += [each.module, *each.tools()]
                parts |= {f"sdk {name}": version for name, version in each.sdk().items()}
        elif hasattr(value, "identity"):
            parts |= _flat(argument, value.identity())
        else:
            parts |= _flat(argument, value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
    files, libraries = closure(modules)
    parts |= {f"code {path}": sha256 for path, sha256 in files.items()}
    return parts | {f"library {library}": version for library, version in libraries.items()}


def _plugins(value: Any) -> list[Plugin]:
    return [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Plugin)]


def _flat(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key in sorted(value) for k, v in _flat(f"{name}.{key}", value[key]).items()}
    return {name: str(value)}


def _explain_miss(store: Store, name: str, parts: dict[str, str]) -> str:
    """Say what differs from the nearest earlier artifact of this stage, made by the same model's and target's code."""
    nearest: list[str] | None = None
    plug_ins = {part: module for part, module in parts.items() if part.startswith("plug-in ")}
    for record in store.records(name):
        if any(record.parts.get(part) != module for part, module in plug_ins.items()):
            continue
        differing = sorted(
            part for part in parts.keys() | record.parts.keys() if parts.get(part) != record.parts.get(part)
        )
        if nearest is None or len(differing) < len(nearest):
            nearest, old = differing, record.parts
    if nearest is None:
        return "never made"
    said = [_difference(part, old.get(part), parts.get(part)) for part in nearest]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _difference(part: str, old: str | None, new: str | None) -> str:
    if old is None:
        return f"{part} is new"
    if new is None:
        return f"{part} is gone"
    short = len(old) < 24 and len(new) < 24
    return f"{part} {old or 'empty'} → {new or 'empty'}" if short else f"{part} changed"
