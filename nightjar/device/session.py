"""What runs on a board: a job in, one JSON line per finished clip out.

    python3 session.pyz JOB_FOLDER

It imports only numpy, the runners' own runtimes and the standard library. A job folder holds `job.json`, the clips as
int16 .npy files and the binary's parts. Results are appended to `lines.jsonl` there; a session that is started again
after a kill sends them first and continues behind them. In between it sends which clip begins, so that the host knows
the clip on which a runtime crashes, and that it pauses while harvested tensors fill the disk.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib
import io
import itertools
import json
import multiprocessing
import os
import shutil

# Before numpy is imported: its threads keep spinning after the mel filters and take a core from the encoder.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import sys
import threading
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nightjar.device.health import throttling
from nightjar.device.part_runners import PartRunners

Tensors = dict[str, np.ndarray]
Json = dict[str, Any]  # a job, a clip of it, or a message to the host
Features = tuple[float, Tensors, float]  # of a clip: its seconds, the encoder's inputs, the seconds that they took
Send = Callable[[Json], None]  # one JSON line to the host

PAUSE_S = 0.1
PAUSES_PER_MESSAGE = 200
THROTTLING_S = 2.0  # between checks: each reads a dozen small files of sysfs
ROOM_BYTES = 4 << 20  # beside harvested tensors: result lines, the runtime's own files


class Session:
    """Run the clips of a job on this board's runtimes, in one process."""

    def __init__(self, folder: Path, job: Json, send: Send) -> None:
        self.folder, self.job, self.send = folder, job, send
        self.family = importlib.import_module(f"models.{job['model']['family']}.decode")
        self.parts = PartRunners(folder, job["parts"], job["runners"])
        self._throttled, self._checked_at = "", -THROTTLING_S

    def run(self, clips: list[Json]) -> Iterator[Json]:
        """Yield the result of each clip as it ends; harvested tensors are on disk before it."""
        if self.job["decode"]:
            yield from self._decode(clips)
        else:
            for clip, features in self._features_ahead(clips):
                yield self._encode(clip, features)[0]
        self.parts.close()

    def _decode(self, clips: list[Json]) -> Iterator[Json]:
        job = self.job
        begun: dict[str, Json] = {}

        def encoded_clips() -> Iterator[Any]:
            for clip, features in self._features_ahead(clips):
                begun[clip["id"]], encoded = self._encode(clip, features)
                yield self.family.EncodedClip(clip["id"], encoded, clip.get("forced"), clip.get("watch"))

        tables = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in self.folder.glob("*_embedding.npy")}
        lanes = job["parts"]["decoder"].get("lanes", 1)
        settings = {"tables": tables, "lanes": lanes, "clock": self.parts.seconds}
        for name, decoded in self.family.decode_clips(
            self.parts, encoded_clips(), job["model"], job["language"], **settings
        ):
            result = begun.pop(name)
            seconds, spent = result["seconds"], decoded.pop("seconds")
            seconds |= {**spent, "total": seconds["total"] + spent["total"]}
            yield {**result, "agree": None, **decoded}

    def _features_ahead(self, clips: list[Json]) -> Iterator[tuple[Json, "Future[Features]"]]:
        """Yield each clip with its features; those of the next are computed while the runtime runs this one."""
        coming: deque[tuple[Json, Future[Features]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for clip in clips:
                coming.append((clip, pool.submit(self._compute_features, clip)))
                if len(coming) == 2:
                    yield coming.popleft()
            yield from coming

    def _compute_features(self, clip: Json) -> Features:
        wave = np.load(self.folder / clip["file"], allow_pickle=False).astype(np.float32) / 32768.0
        start = time.perf_counter()
        features = self.family.features(wave, self.job["model"])
        return round(len(wave) / 16000, 4), features, time.perf_counter() - start

    def _encode(self, clip: Json, coming: "Future[Features]") -> tuple[Json, Tensors]:
        """Run one clip's encoder and write its harvested tensors; return the beginning of its result."""
        self.send({"begin": clip["id"]})
        audio_s, features, features_s = coming.result()
        parts, harvest = self.parts, self.job["harvest"]
        start, before = time.perf_counter(), parts.seconds.get("encoder", 0.0)
        encoded: Tensors = self.family.encode(parts, features, self.job["model"], harvest)
        seconds = {"features": features_s, "encoder": parts.seconds["encoder"] - before}
        seconds["total"] = features_s + time.perf_counter() - start
        result: Json = {"id": clip["id"], "audio_s": audio_s, "seconds": seconds}
        if time.monotonic() - self._checked_at >= THROTTLING_S:
            self._throttled, self._checked_at = throttling(), time.monotonic()
        if self._throttled:
            result["throttled"] = self._throttled
        if harvest:
            result["sha256"] = {name: self._write_tensor(clip["id"], name, encoded[name]) for name in harvest}
        return result, encoded

    def _write_tensor(self, clip: str, name: str, tensor: np.ndarray) -> str:
        """Write a harvested tensor, floats as float16, once there is room; return the file's sha256."""
        packed = io.BytesIO()
        np.save(packed, tensor[0].astype(np.float16) if tensor.dtype.kind == "f" else tensor[0])
        data = packed.getvalue()
        target = self.folder / "harvest" / f"{clip}.{name}.npy"
        part = target.with_suffix(".part")
        if self.job.get("spool_bytes"):
            _await_room(target.parent, len(data), self.job["spool_bytes"], self.send)
        part.write_bytes(data)
        part.rename(target)
        return hashlib.sha256(data).hexdigest()


def _await_room(harvest: Path, coming: int, limit_bytes: int, send: Send) -> None:
    """Pause until the host has fetched and deleted enough; raises OSError on a full disk with nothing to fetch."""
    for pauses in itertools.count():
        waiting = 0
        for path in harvest.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # fetched and deleted meanwhile
                waiting += path.stat().st_size
        free = shutil.disk_usage(harvest).free
        if free >= coming + ROOM_BYTES and (not waiting or waiting + coming <= limit_bytes):
            return
        if not waiting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(harvest))
        if pauses % PAUSES_PER_MESSAGE == 0:
            send({"paused": waiting})
        time.sleep(PAUSE_S)


def run_job(folder: Path, out: TextIO) -> None:
    """Run the clips without a result; send the results that exist first, each new one when it is on disk."""
    sending = threading.Lock()  # one thread begins clips while another one writes results

    def send(message: Json) -> None:
        with sending:
            print(json.dumps(message), file=out, flush=True)

    with (folder / "lock").open("a") as lock:
        # A session whose host was killed ends at its next message; until then the folder is still in use.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run_locked(folder, send)


def _run_locked(folder: Path, send: Send) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    harvest, results_file = folder / "harvest", folder / "lines.jsonl"
    harvest.mkdir(exist_ok=True)
    done = {
        name: result
        for name, result in read_results(results_file).items()
        if all((harvest / f"{name}.{tensor}.npy").is_file() for tensor in job["harvest"])
    }
    wanted = {clip["id"] for clip in job["clips"]}
    if job.get("spool_bytes"):  # tensors of clips that another board has run would never be fetched
        own = {f"{name}.{tensor}.npy" for name in wanted for tensor in job["harvest"]}
        for path in harvest.iterdir():
            if path.name not in own:
                path.unlink()
    for name, result in done.items():
        if name in wanted:
            send(result)
    if todo := [clip for clip in job["clips"] if clip["id"] not in done]:
        with results_file.open("a", encoding="utf-8") as file, ThreadPoolExecutor(1) as writer:

            def write(result: Json) -> None:
                result["seconds"] = {name: round(value, 5) for name, value in result["seconds"].items()}
                print(json.dumps(result | {"crc": checksum(result)}), file=file, flush=True)
                os.fsync(file.fileno())
                send(result)

            writing = None
            for result in _run_workers(folder, job, todo, send):
                if writing:
                    writing.result()
                writing = writer.submit(write, result)  # the disk takes time, in which the next clip runs
            if writing:
                writing.result()
    peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    send({"end": len(job["clips"]), "peak_rss_bytes": peak_kib * 1024})


def _run_workers(folder: Path, job: Json, clips: list[Json], send: Send) -> Iterator[Json]:
    """Yield the results of clips, from `workers` processes where one runtime uses only one core."""
    workers = min(job["workers"], len(clips))
    if workers == 1:
        yield from Session(folder, job, send).run(clips)
        return
    # No runtime is loaded yet, so a fork is safe. A worker without its parent ends at its next message, and has the
    # lock until then.
    fork = multiprocessing.get_context("fork")
    running: dict[Any, Any] = {}  # process by its pipe
    for number in range(workers):
        reading, writing = fork.Pipe(duplex=False)
        process = fork.Process(target=_work, args=(writing, folder, job, clips[number::workers]), daemon=True)
        process.start()
        writing.close()  # only the worker has it now, so the pipe ends with the worker
        running[reading] = process
    while running:
        pipe: Any
        for pipe in wait(list(running)):
            try:
                message: Json = pipe.recv()
            except (EOFError, OSError):  # between two messages, or in the middle of one
                process = running.pop(pipe)
                process.join()
                if process.exitcode:
                    raise RuntimeError(f"a worker was ended by signal {-process.exitcode}") from None
                continue
            if error := message.get("error"):
                raise RuntimeError(error)
            if "id" in message:
                yield message
            else:
                send(message)


def _work(pipe: "Connection[Any, Any]", folder: Path, job: Json, clips: list[Json]) -> None:
    try:
        for result in Session(folder, job, pipe.send).run(clips):
            pipe.send(result)
    except BrokenPipeError:  # the parent stopped because of another worker, whose error comes last
        pass
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(BrokenPipeError):
            pipe.send({"error": f"{type(error).__name__}: {error}"})


def read_results(path: Path) -> dict[str, Json]:
    """Return the results of an earlier session by clip id; removes a half-written last line, skips damaged ones."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    found = {}
    for text in whole.splitlines():
        try:
            result = json.loads(text)
            if result.pop("crc") == checksum(result):
                found[result["id"]] = result
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return found


def checksum(result: Json) -> int:
    """Return a checksum of a result, which detects a flipped byte on the board's card."""
    return zlib.crc32(json.dumps(result).encode())


def main(folder: str) -> int:
    """Run a job folder; an error is one line on stderr and exit code 4."""
    # A handle of its own: a runtime that redirects stdout while it works would take other threads' lines with it.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        run_job(Path(folder), out)
    except BrokenPipeError:  # the host is gone; finished clips are on disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 4
    except Exception as error:  # the host reads the last line; the traceback above it is for the log
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(json.dumps({"full": str(error)}), file=out, flush=True)  # no clip is at fault
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 4
    return 0
