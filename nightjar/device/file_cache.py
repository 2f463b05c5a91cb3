"""Files on a board, cached once by content and placed by name; sent to boards, standard library only."""

from __future__ import annotations  # boards have older Pythons

import hashlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from nightjar.device.framing import CHUNK, receive_frame, reset_watchdog, send_answer, send_frame

STALE_S = 7 * 24 * 3600  # an abandoned job


class FileCache:
    """Receive and send files inside the scratch folder; contents are cached by sha256, least recently used go first."""

    def __init__(self, scratch: Path, cache_bytes: int) -> None:
        self.scratch = scratch.resolve()
        self.cache, self.cache_bytes = self.scratch / "cache", cache_bytes
        self._ended = True  # whether the content that is being received is complete
        self.cache.mkdir(0o700, parents=True, exist_ok=True)

    def resolve(self, path: str) -> Path:
        """Return the path with the links of its folder resolved; raises ValueError outside of the scratch folder."""
        given = self.scratch / path
        real = given.parent.resolve() / given.name
        if self.scratch not in real.parents or given.name in ("", ".", ".."):
            raise ValueError(f"{path!r} is outside of {self.scratch}")
        return real

    def check_offer(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Place a file whose content is cached; else return how many of its bytes are here, and their sha256."""
        target, cached = self.resolve(entry["path"]), self._cached(entry["sha256"])
        part = cached.with_suffix(".part")
        if cached.is_file():
            if cached.stat().st_size == entry["size"] and sha256_of(cached) == entry["sha256"]:
                self._place(cached, target)
                return {"have": True}
            cached.unlink()  # damaged
        size = part.stat().st_size if part.is_file() else 0
        if not 0 < size <= entry["size"]:
            return {"have": False, "offset": 0, "prefix": ""}
        return {"have": False, "offset": size, "prefix": sha256_of(part)}

    def receive(self, entry: dict[str, Any]) -> None:
        """Receive a file's bytes from `offset` on, check the sha256 of the whole file and place it."""
        self._ended = False
        try:
            self._receive(entry)
        except (OSError, ValueError, KeyError):
            while not self._ended:  # read the rest: its frames must not be taken for another file's
                self._receive_content()
            raise

    def _receive(self, entry: dict[str, Any]) -> None:
        target, cached = self.resolve(entry["path"]), self._cached(entry["sha256"])
        part = cached.with_suffix(".part")
        self._make_room(entry["size"] - entry["offset"])
        # No fsync: a file that a power cut damages has another sha256, which is checked before every use.
        with part.open("r+b" if part.exists() else "w+b") as file, ThreadPoolExecutor(1) as pool:
            hashed = _hash(file, entry["offset"])
            file.truncate(entry["offset"])
            hashing = pool.submit(hashed.update, b"")
            while data := self._receive_content():  # one chunk is hashed while the next one arrives
                hashing.result()
                hashing = pool.submit(hashed.update, data)
                file.write(data)
        if hashed.hexdigest() != entry["sha256"]:
            part.unlink()
            raise ValueError("arrived damaged")
        part.rename(cached)
        self._place(cached, target)

    def _receive_content(self) -> bytes:
        """Return the next chunk of a file, empty at its end."""
        while True:
            frame = receive_frame()
            if frame is not None and frame[0] == b"D":
                self._ended = not frame[1]
                return frame[1]

    def send(self, path: str, offset: int, prefix: str) -> None:
        """Send a file from `offset` on if the bytes before have sha256 `prefix`, else all of it; then its sha256."""
        with self.resolve(path).open("rb") as file, ThreadPoolExecutor(1) as pool:
            size = os.fstat(file.fileno()).st_size
            sent = offset if offset <= size else 0
            hashed = _hash(file, sent)
            if hashed.hexdigest() != prefix:
                hashed, sent = hashlib.sha256(), 0
                file.seek(0)
            send_answer(more=True, size=size, offset=sent)
            hashing = pool.submit(hashed.update, b"")
            while sent < size and (data := file.read(min(CHUNK, size - sent))):
                reset_watchdog()
                hashing.result()
                hashing = pool.submit(hashed.update, data)
                sent += len(data)
                send_frame(b"D", data, more=True)
        send_answer(sha256=hashed.hexdigest())

    def remove_folder(self, path: str) -> None:
        """Delete a folder inside the scratch folder."""
        shutil.rmtree(self.resolve(path), ignore_errors=True)

    def delete(self, paths: list[str]) -> None:
        """Delete files inside the scratch folder; missing ones are skipped."""
        for path in paths:
            self.resolve(path).unlink(missing_ok=True)

    def remove_stale(self) -> None:
        """Delete abandoned jobs and partial files; called after a job, never before one.

        A board without a clock boots in 1970, so its own unfinished job would look abandoned.
        """
        old = time.time() - STALE_S
        for job in (self.scratch / "jobs").glob("*"):
            if job.lstat().st_mtime < old:
                shutil.rmtree(str(job), ignore_errors=True)
        for part in self.cache.glob("*.part"):
            if part.lstat().st_mtime < old:
                part.unlink()

    def _cached(self, sha256: str) -> Path:
        if len(sha256) != 64 or not sha256.isalnum():
            raise ValueError("not a sha256")
        return self.cache / sha256

    def _place(self, cached: Path, target: Path) -> None:
        os.utime(str(cached))
        target.parent.mkdir(0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.getpid()}.part")
        temporary.unlink(missing_ok=True)
        try:
            os.link(str(cached), str(temporary))
        except OSError:  # a card with FAT has no links
            shutil.copyfile(str(cached), str(temporary))
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # renaming a link onto another of the same file does nothing

    def _make_room(self, coming: int) -> None:
        """Delete the least recently used contents until `coming` bytes fit; raises OSError where they cannot."""
        cached = sorted((path.stat().st_mtime, path) for path in self.cache.iterdir() if path.suffix != ".part")
        total = sum(path.stat().st_size for _, path in cached)
        for _, path in cached:
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
        return str(_hash(file, os.fstat(file.fileno()).st_size).hexdigest())


def _hash(file: BinaryIO, count: int) -> Any:
    """Hash the next `count` bytes of a file, fewer at its end."""
    hashed = hashlib.sha256()
    while count > 0 and (data := file.read(min(CHUNK, count))):
        reset_watchdog()
        hashed.update(data)
        count -= len(data)
    return hashed
