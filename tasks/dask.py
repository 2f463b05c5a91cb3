"""Run the clips of an evaluation or harvest on a dask cluster, whose scheduler NIGHTJAR_DASK names.

A shard of clips is a Prefect task on prefect-dask's runner, or without a Prefect server a plain dask task. The worker
takes the binary from its own store, runs the session that this machine would run, and returns result lines and
harvested files. They are written in clip order, so the artifact equals that of a run without a cluster, and the cluster
is not in its key. A worker with other code, processor or libraries than this machine is rejected. dask gives the shards
of a lost worker to another.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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

SETTING = "NIGHTJAR_DASK"
MIN_CLIPS = 8  # per shard: a session takes a second to start
MAX_CLIPS = 64  # they travel together
ROUNDS = 3  # shards per worker, so that all workers finish at about the same time
BY_CLIP = ("forced", "watch")  # settings that have a value per clip


class Shard(NamedTuple):
    """What a worker needs to run some clips; files by content or by their name in a store."""

    clips: list[tuple[str, np.ndarray]]  # id, int16 wave
    artifacts: dict[str, tuple[str, str]]  # stage and key of the binary, and of a binary that lends its encoder
    board: BoardRef
    code: str  # sha256 of the session's zipapp
    settings: dict[str, Any]

    @property
    def size(self) -> int:
        return len(self.clips)


class ShardResult(NamedTuple):
    """A shard's result lines, and its harvested files by name."""

    lines: list[dict[str, Any]]
    files: dict[str, bytes]


Submit = Callable[[Iterable[Shard]], Iterator[ShardResult]]  # yields results in the order in which shards finish


def run_clips(
    board: BoardRef, binary: Path, clips: Sequence[Clip], work: Path, **settings: Any
) -> list[dict[str, Any]]:
    """Do what `run_session` does, on the cluster if there is one; boards behind ssh never use it.

    Raises BoardMissing if the scheduler or its workers do not answer, Missing without prefect-dask.
    """
    address = os.environ.get(SETTING, "")
    if not address or board.remote:
        return run_session(board.boards(), binary, clips, work, lock_board=hold_board, **settings)
    encoder: Path | None = settings.pop("encoder", None)
    settings.pop("earlier", None)  # tensors in this machine's store: a worker has its own
    sources: dict[str, Any] = {clip.id: clip.audio for clip in clips} | (settings.pop("waves", None) or {})
    code = _session_sha256(board, binary, encoder)
    with storage_errors():
        open_job_folder(work, digest([code, board.identity(), sorted(sources)]))
        (work / "harvest").mkdir(exist_ok=True)
    journal = Journal(work)
    left = [name for name in sources if name not in journal.results]
    paths = {"binary": binary} | ({"encoder": encoder} if encoder is not None else {})
    artifacts = {name: (path.parent.name, path.name) for name, path in paths.items()}

    def shard_of(names: Sequence[str]) -> Shard:
        own = {
            setting: {name: settings[setting][name] for name in names if name in settings[setting]}
            for setting in BY_CLIP
            if settings.get(setting) is not None
        }
        waves = {name: sources[name] for name in names}
        loaded = [(name, load_audio(wave) if isinstance(wave, Path) else wave) for name, wave in waves.items()]
        return Shard(loaded, artifacts, board, code, settings | own)

    excluded: dict[str, dict[str, Any]] = {}
    with _cluster(address) as (submit, workers):
        size = min(MAX_CLIPS, max(MIN_CLIPS, -(-len(left) // (ROUNDS * workers))))
        for result in submit(shard_of(left[start : start + size]) for start in range(0, len(left), size)):
            _save(result, work, journal, excluded)
            tick(len(journal.results) + len(excluded), len(sources))
    if missing := [name for name in sources if name not in journal.results and name not in excluded]:
        raise SessionFailed(f"the session gave no result for {missing[0]}: run the same command again")
    return [journal.results.get(name) or excluded[name] for name in sources]


def run_shard(shard: Shard) -> ShardResult:
    """Run a shard on this worker.

    Raises BoardMissing if this machine differs from the one that submitted it, StoreBroken without the binary.
    """
    store, folders = open_store(), dict[str, Path]()
    with closing(Usage(store)) as usage:
        for name, (stage, key) in shard.artifacts.items():
            usage.note(stage, key)
            record, why = store.find(stage, key)
            if record is None:
                raise StoreBroken(
                    f"worker {_worker()} has no {stage}/{key} ({why}): start it with the NIGHTJAR_STORE of this run"
                )
            folders[name] = store.path(record.artifact)
        _check_worker(shard, folders)
        sums = [[name, hashlib.sha256(np.ascontiguousarray(wave).tobytes()).hexdigest()] for name, wave in shard.clips]
        key = digest([shard.code, shard.board.identity(), sums, shard.settings])[:24]
        with Store(store.root).lock("shard", key, on_wait=lambda: None):  # on this machine only: no lease
            work = store.work("shard", key)
            settings = {**shard.settings, "waves": dict(shard.clips), "encoder": folders.get("encoder")}
            lines = run_session(shard.board.boards(), folders["binary"], (), work, **settings)
            names = [f"{line['id']}.{tensor}.npy" for line in lines for tensor in shard.settings.get("harvest", ())]
            found = {name: work / "harvest" / name for name in names}
            result = ShardResult(lines, {name: path.read_bytes() for name, path in found.items() if path.is_file()})
            shutil.rmtree(work, ignore_errors=True)
            return result


shard_task = task(
    name="shard", task_run_name="shard of {shard.size} clips", cache_policy=NO_CACHE, persist_result=False
)(run_shard)


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Submit, int]]:
    """Connect to a scheduler; yield a function that submits shards, and the number of workers."""
    try:
        import distributed
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise Missing(
            f"{SETTING}={address} needs prefect-dask, which is not installed: pip install -c constraints.txt "
            f"'nightjar[dask]', or unset {SETTING}"
        ) from error
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BoardMissing(
            f"no dask scheduler answers at {SETTING}={address} ({error}): start it, or unset {SETTING}"
        ) from error
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise BoardMissing(f"the dask scheduler {address} has no workers: start some with `dask worker {address}`")

        def submit_plain(shards: Iterable[Shard]) -> Iterator[ShardResult]:
            futures = [client.submit(run_shard, shard, pure=False) for shard in shards]
            for future in distributed.as_completed(futures):
                yield future.result()
                future.release()

        def submit_tasks(shards: Iterable[Shard]) -> Iterator[ShardResult]:
            with DaskTaskRunner(address=address) as runner:
                futures = [runner.submit(shard_task, parameters={"shard": shard}) for shard in shards]
                for future in as_completed(futures):
                    yield future.result()

        try:
            yield (submit_tasks if FlowRunContext.get() is not None else submit_plain), workers
        except distributed.KilledWorker as error:
            raise SessionFailed(
                f"a shard repeatedly lost its dask worker ({error}): look at the workers' memory and logs, then run "
                "the same command again; finished clips are kept"
            ) from error


def _save(result: ShardResult, work: Path, journal: Journal, excluded: dict[str, dict[str, Any]]) -> None:
    """Write a shard's files and then its lines, so that a kill of this process loses no finished shard."""
    for line in result.lines:
        if "error" in line:
            excluded[line["id"]] = line
            continue
        own = {name: data for name, data in result.files.items() if name.startswith(f"{line['id']}.")}
        with storage_errors():
            for name, data in own.items():
                (work / "harvest" / name).write_bytes(data)
        journal.add(line, {f"harvest/{name}": hashlib.sha256(data).hexdigest() for name, data in own.items()})


def _check_worker(shard: Shard, folders: Mapping[str, Path]) -> None:
    """Raise BoardMissing if this worker could give other results than the machine that submitted the shard."""
    wanted, here = _versions(shard.board.facts), _versions(_local_facts(shard.board))
    both = sorted(wanted.keys() & here.keys())
    differing = [f"{name} is {here[name]}, not {wanted[name]}" for name in both if here[name] != wanted[name]]
    if _session_sha256(shard.board, folders["binary"], folders.get("encoder")) != shard.code:
        differing.append("its Nightjar code differs")
    if differing:
        raise BoardMissing(
            f"dask worker {_worker()} differs from the machine that started the run ({', '.join(differing)}): use "
            f"workers like that machine, or unset {SETTING}"
        )


def _versions(facts: BoardFacts) -> dict[str, str]:
    return {"soc": facts.soc, "Python": facts.python, **facts.runtimes}


def _local_facts(board: BoardRef) -> BoardFacts:
    if not board.toolchain:
        return LocalBoard().facts(tuple(board.facts.runtimes))
    versions = toolchain(board.toolchain).versions()
    return LocalBoard().facts(()).model_copy(update={"python": versions.pop("python"), "runtimes": versions})


def _session_sha256(board: BoardRef, binary: Path, encoder: Path | None) -> str:
    """Return the sha256 of the session's zipapp that would run here."""
    model = json.loads((binary / "model.json").read_text(encoding="utf-8"))
    parts = json.loads((binary / "binary.json").read_text(encoding="utf-8"))["parts"]
    if encoder is not None:
        parts["encoder"] = json.loads((encoder / "binary.json").read_text(encoding="utf-8"))["parts"]["encoder"]
    return hashlib.sha256(pack_session(session_modules(model, parts, board.connect().runners))).hexdigest()


def _worker() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
