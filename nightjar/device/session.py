"""What runs on a board: a job in, one JSON line per finished clip out.

    python3 session.pyz JOB_FOLDER

Only numpy, the runners' own runtimes and the standard library are imported. A job folder holds `job.json`, the clips
as int16 .npy files and the binary's parts. Finished lines are appended to `lines.jsonl` there, so a session that was
killed says at its next start what it has, and goes on from there. Between them it says which clip it begins, so that
the host knows which one it was when a runtime crashes, and that it is paused while what it harvested fills the disk.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib
import io
import json
import os
import shutil

# Before numpy is imported: its threads go on spinning after the mel filters and take a core from the encoder.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import selectors
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from nightjar.device.health import throttling

Tensors = dict[str, np.ndarray]
Say = Callable[[dict[str, Any]], None]  # to the host, of what is no result

PAUSE_S = 0.1
PAUSED_SAID_S = 20.0
LOOK_S = 2.0  # between looks at what holds the processor back: a dozen small files of sysfs
ROOM_BYTES = 4 << 20  # beside what is harvested: result lines, the runtime's own files


class ClipFeatures(NamedTuple):
    """What the encoder takes of a clip, and what making it took."""

    audio_s: float
    features: Tensors
    features_s: float


class PartRunners:
    """Map each part to the runner it was compiled for, and time the calls per part in seconds."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.seconds: dict[str, float] = {}
        self._throttled, self._looked_at = "", -LOOK_S
        self._runner_of: dict[str, Any] = {}
        by_runner: dict[str, dict[str, Any]] = {}
        for part, entry in job["parts"].items():
            by_runner.setdefault(entry["runner"], {})[part] = entry
        for name, parts in by_runner.items():
            module = job["runners"].get(name, f"targets.{name}.runner")
            opened = importlib.import_module(module).open_runner(folder, parts, {"own_process": True})
            self._runner_of.update(dict.fromkeys(parts, opened))

    def run(self, part: str, inputs: Tensors, constant: Tensors = {}, **into: Tensors) -> Tensors:  # noqa: B006 (never written)
        start = time.perf_counter()
        outputs: Tensors = self._runner_of[part].run(part, inputs, constant, **into)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return outputs

    def throttled(self) -> dict[str, str]:
        """Return what a line says of a board that is held back, nothing of one that is not."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._throttled, self._looked_at = throttling(), time.monotonic()
        return {"throttled": self._throttled} if self._throttled else {}

    def close(self) -> None:
        for runner in set(self._runner_of.values()):
            runner.close()


def run_clips(
    parts: PartRunners, folder: Path, job: dict[str, Any], clips: list[dict[str, Any]], say: Say
) -> Iterator[dict[str, Any]]:
    """Run clips and yield the line of each as it ends; harvested tensors are on disk before the line is."""
    family = importlib.import_module(f"models.{job['model']['family']}.decode")
    if not job["decode"]:
        for clip, heard in _features_ahead(family, clips, folder, job):
            line, _ = encode_clip(parts, family, clip, heard, folder, job, say)
            yield _rounded(line)
        return
    begun: dict[str, dict[str, Any]] = {}

    def jobs() -> Iterator[Any]:
        for clip, heard in _features_ahead(family, clips, folder, job):
            begun[clip["id"]], encoded = encode_clip(parts, family, clip, heard, folder, job, say)
            yield family.EncodedClip(clip["id"], encoded, clip.get("forced"), clip.get("watch"))

    tables = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in folder.glob("*_embedding.npy")}
    lanes = job["parts"]["decoder"].get("lanes", 1)
    settings = {"tables": tables, "lanes": lanes, "clock": parts.seconds}
    for name, heard in family.decode_clips(parts, jobs(), job["model"], job["language"], **settings):
        line = begun.pop(name)
        seconds, spent = line["seconds"], heard.pop("seconds")
        seconds |= {**spent, "total": seconds["total"] + spent["total"]}
        yield _rounded({**line, "agree": None, **heard})


def _features_ahead(
    family: Any, clips: list[dict[str, Any]], folder: Path, job: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], "Future[ClipFeatures]"]]:
    """Yield each clip with its features; the next one's are made while the runtime works on this one."""

    def make(clip: dict[str, Any]) -> ClipFeatures:
        wave = np.load(folder / clip["file"], allow_pickle=False).astype(np.float32) / 32768.0
        start = time.perf_counter()
        features = family.features(wave, job["model"])
        return ClipFeatures(round(len(wave) / 16000, 4), features, time.perf_counter() - start)

    with ThreadPoolExecutor(1) as maker:
        coming = [maker.submit(make, clip) for clip in clips[:1]]
        for clip, following in zip(clips, [*clips[1:], None]):  # noqa: B905 (boards have older Pythons)
            if following is not None:
                coming.append(maker.submit(make, following))
            yield clip, coming.pop(0)


def encode_clip(
    parts: PartRunners,
    family: Any,
    clip: dict[str, Any],
    heard: "Future[ClipFeatures]",
    folder: Path,
    job: dict[str, Any],
    say: Say,
) -> tuple[dict[str, Any], Tensors]:
    """Run one clip's encoder, keep what is harvested, and return the beginning of its line."""
    say({"begin": clip["id"]})
    audio_s, features, features_s = heard.result()
    start, before = time.perf_counter(), parts.seconds.get("encoder", 0.0)
    encoded: Tensors = family.encode(parts, features, job["model"], job["harvest"])
    seconds = {"features": features_s, "encoder": parts.seconds["encoder"] - before}
    seconds["total"] = features_s + time.perf_counter() - start
    line: dict[str, Any] = {"id": clip["id"], "audio_s": audio_s, "seconds": seconds}
    line |= parts.throttled()
    if job["harvest"]:
        line["sha256"] = {name: _keep(folder, job, clip["id"], name, encoded[name], say) for name in job["harvest"]}
    return line, encoded


def _keep(folder: Path, job: dict[str, Any], clip: str, name: str, tensor: np.ndarray, say: Say) -> str:
    """Write a harvested tensor, floats as float16, when there is room for it; return the file's sha256."""
    packed = io.BytesIO()
    np.save(packed, tensor[0].astype(np.float16) if tensor.dtype.kind == "f" else tensor[0])
    data = packed.getvalue()
    target = folder / "harvest" / f"{clip}.{name}.npy"
    part = target.with_suffix(".part")
    if job.get("spool_bytes"):
        _await_room(folder / "harvest", len(data), job["spool_bytes"], say)
    with part.open("wb") as file:
        file.write(data)
    part.rename(target)
    return hashlib.sha256(data).hexdigest()


def _await_room(harvest: Path, coming: int, most: int, say: Say) -> None:
    """Pause until the host has fetched enough of what lies there, and deleted it; raises OSError where it has all."""
    said_at = -PAUSED_SAID_S
    while True:
        waiting = _waiting_bytes(harvest)
        free = shutil.disk_usage(harvest).free
        if free >= coming + ROOM_BYTES and (not waiting or waiting + coming <= most):
            return
        if not waiting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(harvest))
        if time.monotonic() - said_at > PAUSED_SAID_S:
            said_at = time.monotonic()
            say({"paused": waiting})
        time.sleep(PAUSE_S)


def _waiting_bytes(harvest: Path) -> int:
    """Sum what waits to be fetched; a file may go while we look."""
    total = 0
    for path in harvest.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "seconds": {name: round(value, 5) for name, value in line["seconds"].items()}}


def run_job(folder: Path, out: TextIO) -> None:
    """Run the clips that have no line yet; print what is there first, then each new line when it is safe on disk."""
    with (folder / "lock").open("a") as lock:
        # A session whose host was killed ends at its next line; until then the folder is still its own.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run_locked(folder, out)


def _run_locked(folder: Path, out: TextIO) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    (folder / "harvest").mkdir(exist_ok=True)
    lines_path = folder / "lines.jsonl"
    done = {
        name: line
        for name, line in read_lines(lines_path).items()
        if all((folder / "harvest" / f"{name}.{tensor}.npy").is_file() for tensor in job["harvest"])
    }

    saying = threading.Lock()

    def say(line: dict[str, Any]) -> None:
        with saying:  # who begins a clip and who keeps the one before are two threads
            print(json.dumps(line), file=out, flush=True)

    wanted = {clip["id"] for clip in job["clips"]}
    if job.get("spool_bytes"):  # what another board has done meanwhile would never be fetched, and fill the disk
        ours = {f"{name}.{tensor}.npy" for name in wanted for tensor in job["harvest"]}
        for path in (folder / "harvest").iterdir():
            if path.name not in ours:
                path.unlink()
    for name, line in done.items():
        if name in wanted:
            say(line)
    todo = [clip for clip in job["clips"] if clip["id"] not in done]
    if todo:
        with lines_path.open("a", encoding="utf-8") as kept:

            def keep(line: dict[str, Any]) -> None:
                print(json.dumps(line | {"crc": checked(line)}), file=kept, flush=True)
                os.fsync(kept.fileno())
                say(line)

            # The disk takes its time, in which the next clip is worked on.
            with ThreadPoolExecutor(1) as keeper:
                keeping = None
                for line in _worked(folder, job, todo, say):
                    if keeping:
                        keeping.result()
                    keeping = keeper.submit(keep, line)
                if keeping:
                    keeping.result()
    peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    say({"end": len(job["clips"]), "peak_rss_bytes": peak_kib * 1024})


def _worked(folder: Path, job: dict[str, Any], clips: list[dict[str, Any]], say: Say) -> Iterator[dict[str, Any]]:
    """Yield the lines of clips, from `workers` processes where one runtime keeps one core busy."""
    workers = min(job["workers"], len(clips))
    if workers == 1:
        parts = PartRunners(folder, job)
        yield from run_clips(parts, folder, job, clips, say)
        parts.close()
        return
    with selectors.DefaultSelector() as waiting:
        for number in range(workers):
            pid, pipe = _fork(folder, job, clips[number::workers])
            waiting.register(pipe, selectors.EVENT_READ, (pid, pipe))
        while waiting.get_map():
            for key, _ in waiting.select():
                pid, pipe = key.data
                if text := pipe.readline().decode():
                    line = json.loads(text)
                    if error := line.get("error"):
                        raise RuntimeError(error)
                    if "id" in line:
                        yield line
                    else:
                        say(line)
                    continue
                waiting.unregister(pipe)
                pipe.close()
                if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                    raise RuntimeError(f"a worker was ended by signal {-status}")


def _fork(folder: Path, job: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[int, Any]:
    """Start a worker on its clips; return its process id and where its lines come from.

    It has no runtime yet, so a fork is safe. Its parent gone, it ends at its next line, and holds the lock until then.
    """
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, os.fdopen(reading, "rb", buffering=0)  # what is buffered, select does not see
    os.close(reading)
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as out:
            try:
                parts = PartRunners(folder, job)

                def say(line: dict[str, Any]) -> None:
                    print(json.dumps(line), file=out, flush=True)

                for line in run_clips(parts, folder, job, clips, say):
                    say(line)
            except BrokenPipeError:  # the parent gave up for another worker's sake, whose reason is to be the last word
                pass
            except Exception as error:
                traceback.print_exc()
                print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=out, flush=True)
    finally:
        os._exit(0)  # a fork must not go on in its parent's code


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the whole lines of an earlier session by clip id; cut off a half-written last one, pass over a damaged."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    found = {}
    for text in whole.splitlines():
        try:
            line = json.loads(text)
            if line.pop("crc") == checked(line):
                found[line["id"]] = line
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return found


def checked(line: dict[str, Any]) -> int:
    """Return a checksum of a line, by which a flipped byte on the board's card is known."""
    return zlib.crc32(json.dumps(line).encode())


def main(folder: str) -> int:
    """Run a job folder; an error becomes one line on stderr and exit code 4."""
    # A way out of its own: a runtime that turns stdout away while it works would take other threads' lines with it.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        run_job(Path(folder), out)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the host is gone; what is finished is on disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 4
    except Exception as error:  # the host reads the last line; the traceback above it is for the log
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(json.dumps({"full": str(error)}), file=out, flush=True)  # nobody's clip is to blame
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 4
    return 0
