"""Clips of an evaluation or harvest on the workers of a dask cluster, where NIGHTJAR_DASK names its scheduler.

A shard is a Prefect task on prefect-dask's runner, or without a server a plain dask task. Its worker takes the binary
from its own store, runs the session that this machine would run, and gives the lines back with what was harvested. They
are laid in clip order, so the artifact is the one that an unsharded run makes; how it was shared is no part of its key,
and a worker whose code, processor or libraries differ from this machine's is refused. What a lost worker had,
another does.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.futures import as_completed

from nightjar.boards.board import BoardFacts, LocalBoard
from nightjar.boards.ref import BoardRef
from nightjar.errors import BoardMissing, Missing, SessionFailed, StoreBroken
from nightjar.files import digest, storage_errors
from nightjar.progress import tick
from nightjar.sessions.journal import Journal
from nightjar.sessions.run import open_job_folder, pack_session, run_session, session_modules
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip
from nightjar.store.artifact import Store
from nightjar.store.remote import open_store
from nightjar.store.usage import Usage
from nightjar.toolchains.environment import toolchain
from tasks.concurrency import hold_board

log = logging.getLogger("nightjar.sharded")

SETTING = "NIGHTJAR_DASK"
LEAST = 8  # clips in a shard: a session takes a second to start
MOST = 64  # of them travel at once
ROUNDS = 3  # shards per worker: the last ones end together


class Order(NamedTuple):
    """What a worker needs to run a shard: everything by content or by its name in a store."""

    clips: list[tuple[str, np.ndarray]]  # id, int16 wave
    artifacts: dict[str, tuple[str, str]]  # binary, and encoder where another lends its own: stage and key
    board: BoardRef
    code: str  # sha256 of the session's zipapp
    settings: dict[str, Any]


class Done(NamedTuple):
    """A shard's lines, and its harvested files by name."""

    lines: list[dict[str, Any]]
    files: dict[str, bytes]


def run_clips(
    board: BoardRef,
    binary: Path,
    clips: Sequence[Clip],
    work: Path,
    *,
    waves: Mapping[str, np.ndarray] | None = None,
    encoder: Path | None = None,
    earlier: Sequence[Path] = (),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Do what `run_session` does, on a cluster if there is one; boards behind ssh share by their own aliases.

    Raises BoardMissing when the scheduler or its workers do not answer, Missing without prefect-dask.
    """
    address = os.environ.get(SETTING, "")
    if not address or board.remote:
        return run_session(
            board.boards(),
            binary,
            clips,
            work,
            waves=waves,
            encoder=encoder,
            earlier=earlier,
            lock_board=hold_board,
            **settings,
        )
    sources: dict[str, np.ndarray | Path] = {clip.id: clip.audio for clip in clips} | dict(waves or {})
    code = _code(board, binary, encoder)
    with storage_errors():
        open_job_folder(work, digest([code, board.identity(), sorted(sources)]))
        (work / "harvest").mkdir(exist_ok=True)
    journal = Journal(work)
    left = [name for name in sources if name not in journal.results]
    with _cluster(address) as (submit, workers):
        share = min(MOST, max(LEAST, -(-len(left) // (ROUNDS * workers))))
        shards = [left[start : start + share] for start in range(0, len(left), share)]
        paths = {"binary": binary} | ({"encoder": encoder} if encoder is not None else {})
        artifacts = {name: (path.parent.name, path.name) for name, path in paths.items()}
        orders = (
            Order(
                [(name, _wave(sources[name])) for name in shard],
                artifacts,
                board,
                code,
                settings | {name: _of(shard, settings.get(name)) for name in ("forced", "watch")},
            )
            for shard in shards
        )
        aside: dict[str, dict[str, Any]] = {}
        for done in submit(orders):
            _keep(done, work, journal, aside)
            tick(len(journal.results) + len(aside), len(sources))
    if missing := [name for name in sources if name not in journal.results and name not in aside]:
        raise SessionFailed(f"the session gave no result for {missing[0]}; run the same command again")
    return [journal.results.get(name) or aside[name] for name in sources]


def run_shard(order: Order) -> Done:
    """Run a shard on this worker; raises BoardMissing where it is of another kind, StoreBroken without the binary."""
    store = open_store()
    usage = Usage(store)
    try:
        folders = {}
        for name, (stage, key) in order.artifacts.items():
            usage.note(stage, key)
            record, why = store.find(stage, key)
            if record is None:
                raise StoreBroken(
                    f"worker {_worker()} has no {stage}/{key} ({why}): start it with the NIGHTJAR_STORE of this run"
                )
            folders[name] = store.path(record.artifact)
        _refuse_others(order, folders)
        key = digest([order.code, order.board.identity(), [[n, _sha256(w)] for n, w in order.clips], order.settings])
        with Store(store.root).lock("shard", key[:24], on_wait=lambda: None):  # of this machine, no lease
            work = store.work("shard", key[:24])
            lines = run_session(
                order.board.boards(),
                folders["binary"],
                (),
                work,
                waves=dict(order.clips),
                encoder=folders.get("encoder"),
                **order.settings,
            )
            names = [f"{line['id']}.{tensor}.npy" for line in lines for tensor in order.settings.get("harvest", ())]
            found = {name: work / "harvest" / name for name in names}
            done = Done(lines, {name: path.read_bytes() for name, path in found.items() if path.is_file()})
            shutil.rmtree(work, ignore_errors=True)
            return done
    finally:
        usage.close()


@task(name="shard", task_run_name="shard of {clips} clips", cache_policy=NO_CACHE, persist_result=False)
def shard(order: Order, clips: int) -> Done:
    """Run some clips of an evaluation or harvest."""
    return run_shard(order)


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Callable[[Iterable[Order]], Iterator[Done]], int]]:
    """Reach a scheduler; give what submits orders and yields what is done as it comes; and how many work there."""
    try:
        import distributed
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise Missing(
            f"{SETTING}={address} needs prefect-dask, which is not installed: pip install -c constraints.txt "
            "'nightjar[dask]', or unset it"
        ) from error
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BoardMissing(
            f"no dask scheduler answers at {SETTING}={address} ({error}): start it, or unset it"
        ) from error
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise BoardMissing(f"the dask scheduler {address} has no workers: start some with `dask worker {address}`")

        def plain(orders: Iterable[Order]) -> Iterator[Done]:
            futures = [client.submit(run_shard, order, pure=False) for order in orders]
            for future in distributed.as_completed(futures):
                yield future.result()
                future.release()

        def served(orders: Iterable[Order]) -> Iterator[Done]:
            with DaskTaskRunner(address=address) as runner:
                given = ({"order": order, "clips": len(order.clips)} for order in orders)
                futures = [runner.submit(shard, parameters=each) for each in given]
                for future in as_completed(futures):
                    yield future.result()

        try:
            yield (served if FlowRunContext.get() is not None else plain), workers
        except distributed.KilledWorker as error:
            raise SessionFailed(
                f"a shard was lost with its dask worker time after time ({error}): "
                "look at the workers' memory and logs, "
                "then run the same command again, finished clips are kept"
            ) from error


def _keep(done: Done, work: Path, journal: Journal, aside: dict[str, dict[str, Any]]) -> None:
    """Write a shard's files and then its lines down, so that a kill of this process loses no finished shard."""
    for line in done.lines:
        if "error" in line:
            aside[line["id"]] = line
            continue
        own = {name: data for name, data in done.files.items() if name.startswith(f"{line['id']}.")}
        with storage_errors():
            for name, data in own.items():
                (work / "harvest" / name).write_bytes(data)
        journal.add(line, {f"harvest/{name}": hashlib.sha256(data).hexdigest() for name, data in own.items()})


def _refuse_others(order: Order, folders: Mapping[str, Path]) -> None:
    """Raise BoardMissing where this worker would hear something else than the machine that asks it."""
    facts = _facts(order.board)
    said = {"soc": order.board.facts.soc, "Python": order.board.facts.python, **order.board.facts.runtimes}
    ours = {"soc": facts.soc, "Python": facts.python, **facts.runtimes}
    differing = [
        f"{name} {ours[name]} and not {said[name]}" for name in said if name in ours and ours[name] != said[name]
    ]
    if _code(order.board, folders["binary"], folders.get("encoder")) != order.code:
        differing.append("other code of ours")
    if differing:
        raise BoardMissing(
            f"dask worker {_worker()} is not of this machine's kind ({', '.join(differing)}): give the scheduler "
            f"workers that are, or unset {SETTING}"
        )


def _facts(board: BoardRef) -> BoardFacts:
    if not board.toolchain:
        return LocalBoard().facts(tuple(board.facts.runtimes))
    versions = toolchain(board.toolchain).versions()
    return LocalBoard().facts(()).model_copy(update={"python": versions.pop("python"), "runtimes": versions})


def _code(board: BoardRef, binary: Path, encoder: Path | None) -> str:
    """Return the sha256 of the session that would run here."""
    model = json.loads((binary / "model.json").read_text(encoding="utf-8"))
    parts = json.loads((binary / "binary.json").read_text(encoding="utf-8"))["parts"]
    if encoder is not None:
        parts["encoder"] = json.loads((encoder / "binary.json").read_text(encoding="utf-8"))["parts"]["encoder"]
    runners = board.connect().runners
    return hashlib.sha256(pack_session(session_modules(model, parts, runners))).hexdigest()


def _wave(source: np.ndarray | Path) -> np.ndarray:
    return load_audio(source) if isinstance(source, Path) else source


def _of(names: Sequence[str], given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else {name: given[name] for name in names if name in given}


def _sha256(wave: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(wave).tobytes()).hexdigest()


def _worker() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
