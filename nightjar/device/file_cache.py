"""Files on a board, kept once by content and placed by name; sent to boards, standard library only."""

from __future__ import annotations  # boards have older Pythons

import contextlib
import hashlib
import os
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from nightjar.device.framing import CHUNK, alive, answer, heard, say

STALE_S = 7 * 24 * 3600  # a job nobody came back to


class FileCache:
    """Take and give files inside the scratch folder; contents are kept once, by sha256, least recently used goes."""

    def __init__(self, scratch: Path, cache_bytes: int) -> None:
        self.scratch = scratch.resolve()
        self.cache, self.cache_bytes = self.scratch / "cache", cache_bytes
        self._ended = True  # the content that is being received
        self.cache.mkdir(0o700, parents=True, exist_ok=True)

    def inside(self, path: str) -> Path:
        """Return the path with the links of its folder resolved; raises ValueError where it leaves the scratch."""
        given = self.scratch / path
        real = given.parent.resolve() / given.name
        if self.scratch not in real.parents or given.name in ("", ".", ".."):
            raise ValueError(f"{path!r} is outside of {self.scratch}")
        return real

    def offered(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Place a file that is here already; else say how much of it is, and the sha256 of that."""
        target, kept = self.inside(entry["path"]), self._kept(entry["sha256"])
        part = kept.with_suffix(".part")
        if kept.is_file():
            if kept.stat().st_size == entry["size"] and sha256_of(kept) == entry["sha256"]:
                self._place(kept, target)
                return {"have": True}
            kept.unlink()
            return {"have": False, "damaged": True, "offset": 0, "prefix": ""}
        size = part.stat().st_size if part.is_file() else 0
        if not 0 < size <= entry["size"]:
            return {"have": False, "offset": 0, "prefix": ""}
        return {"have": False, "offset": size, "prefix": sha256_of(part)}

    def take(self, entry: dict[str, Any]) -> None:
        """Receive a file's bytes from `offset` on, check the sha256 of all of it and place it."""
        error: Exception | None = None
        try:
            self._receive(entry)
        except (OSError, ValueError, KeyError) as failed:
            error = failed
            while not self._ended:  # the rest is heard out, so that the answer is not taken for another's
                self._ended = _content() == b""
        if error:
            raise error

    def _receive(self, entry: dict[str, Any]) -> None:
        self._ended = False
        target, kept = self.inside(entry["path"]), self._kept(entry["sha256"])
        part = kept.with_suffix(".part")
        self._make_room(entry["size"] - entry["offset"])
        # No fsync: what a power cut leaves half written has another sha256, and that is looked at before every use.
        with part.open("r+b" if part.exists() else "w+b") as file:
            hashed = _hashed(file, entry["offset"])
            file.truncate(entry["offset"])
            with _beside(hashed.update) as hash_beside:
                while not self._ended:
                    data = _content()
                    self._ended = not data
                    hash_beside(data)
                    file.write(data)
        if hashed.hexdigest() != entry["sha256"]:
            part.unlink()
            raise ValueError("arrived damaged")
        part.rename(kept)
        self._place(kept, target)

    def give(self, path: str, offset: int, prefix: str) -> None:
        """Send a file's bytes from `offset` on, if those before are the other side's; then its sha256."""
        with self.inside(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            have = offset if offset <= size else 0
            hashed = _hashed(file, have)
            if hashed.hexdigest() != prefix:
                hashed, have = hashlib.sha256(), 0
                file.seek(0)
            answer(more=True, size=size, offset=have)
            with _beside(hashed.update) as hash_beside:
                while have < size and (data := file.read(min(CHUNK, size - have))):
                    alive()
                    hash_beside(data)
                    have += len(data)
                    say(b"D", data, more=True)
        answer(sha256=hashed.hexdigest())

    def remove(self, path: str) -> None:
        """Delete a folder of ours."""
        shutil.rmtree(self.inside(path), ignore_errors=True)

    def drop(self, paths: list[str]) -> None:
        """Delete files of ours; what is gone already is gone."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.inside(path).unlink()

    def tidy(self) -> None:
        """Delete jobs and half files that nobody came back to; asked for when a job is done, never before one.

        A board without a clock of its own boots in 1970, and its unfinished job would look as old as that.
        """
        old = time.time() - STALE_S
        for job in (self.scratch / "jobs").glob("*"):
            if job.lstat().st_mtime < old:
                shutil.rmtree(str(job), ignore_errors=True)
        for part in self.cache.glob("*.part"):
            if part.lstat().st_mtime < old:
                part.unlink()

    def _kept(self, sha256: str) -> Path:
        if len(sha256) != 64 or not sha256.isalnum():
            raise ValueError("no sha256")
        return self.cache / sha256

    def _place(self, kept: Path, target: Path) -> None:
        os.utime(str(kept))
        target.parent.mkdir(0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.getpid()}.part")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        try:
            os.link(str(kept), str(temporary))
        except OSError:  # a card with FAT has no links
            shutil.copyfile(str(kept), str(temporary))
        temporary.replace(target)
        with contextlib.suppress(FileNotFoundError):  # renaming a link onto another of the same file does nothing
            temporary.unlink()

    def _make_room(self, coming: int) -> None:
        """Delete what was not used for longest until `coming` bytes fit; raises OSError where they cannot."""
        kept = sorted((path.stat().st_mtime, path) for path in self.cache.iterdir() if path.suffix != ".part")
        total = sum(path.stat().st_size for _, path in kept)
        for _, path in kept:
            if total + coming <= self.cache_bytes and shutil.disk_usage(str(self.cache)).free > coming:
                break
            total -= path.stat().st_size
            path.unlink()
        free = shutil.disk_usage(str(self.cache)).free
        if free < coming:
            raise OSError(f"{free >> 20} MiB free on the board, {coming >> 20} needed")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return str(_hashed(file, os.fstat(file.fileno()).st_size).hexdigest())


def _hashed(file: BinaryIO, count: int) -> Any:
    """Hash the next `count` bytes of a file, or those that there are."""
    hashed = hashlib.sha256()
    while count > 0 and (data := file.read(min(CHUNK, count))):
        alive()
        hashed.update(data)
        count -= len(data)
    return hashed


@contextlib.contextmanager
def _beside(work: Callable[[bytes], None]) -> Iterator[Callable[[bytes], None]]:
    """Give a function that has `work` done in a thread, in order: while a piece is hashed, the next one comes."""
    waiting: Any = queue.Queue(4)
    failed = []

    def go_on() -> None:
        while True:
            data = waiting.get()
            if not data:
                return
            try:
                work(data)
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield lambda data: waiting.put(data) if data else None
    finally:
        waiting.put(b"")
        thread.join()
    if failed:
        raise failed[0]


def _content() -> bytes:
    """Return the next piece of a file, empty at its end."""
    while True:
        frame = heard()
        if frame is not None and frame[0] == b"D":
            return frame[1]
