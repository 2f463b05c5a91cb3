"""A store shared by URL: stages read and write a local cache, and what is made there is put where others find it.

    blobs/<2 digits>/<sha256>      the files, by content: what is there is not sent again
    records/<stage>/<key>.json     what an artifact holds, as record.json in the cache; written last
    leases/<stage>-<key>.json      who is making it, for as long as the content changes
    store.json                     the format

A record is there when all that it names is. So a reader sees whole artifacts only, and of two that write one key either
is whole. Everything is verified when it is fetched (docs/decisions/014-shared-store.md).
"""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from nightjar.errors import StoreBroken
from nightjar.files import digest, digest_file, storage_errors, write_atomic
from nightjar.paths import remote_url, store_folder
from nightjar.process import lock_owner
from nightjar.store.artifact import Record, Store, content_files
from nightjar.store.bucket import Bucket

log = logging.getLogger(__name__)

FORMAT = {"format": 1}
AT_ONCE = 8  # files that travel side by side
FRESH_S = 86400.0  # a blob that is older is sent again, so that no gc takes it between our look and our record
RENEW_S = 20.0
STALE_S = 90.0  # a lease that has not changed for so long, by our own clock, is a dead run's
LOOK_S = 3.0


class RemoteStore(Store):
    """A store in a local folder, the cache, that takes what it lacks from a bucket and puts there what it makes."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        super().__init__(root)
        self.bucket = bucket
        self._damaged = set[str]()  # blobs that were fetched and are not what their name says
        self._checked = False

    def find(self, stage: str, key: str, held: bool = False) -> tuple[Record | None, str]:
        """Return the verified record of a key that lies in the cache, or now does; None and why it cannot be used.

        held: the caller holds the key's lock; else it is taken to fetch, unless somebody is making the key.
        Raises StoreBroken when the bucket cannot be reached.
        """
        record, why = super().find(stage, key)
        if record is not None:
            self._send(record, again=False)
            return record, why
        self._check()
        there = self._read(stage, key)
        if isinstance(there, str):
            return None, there or why
        with contextlib.nullcontext(True) if held else self.try_lock_key(stage, key) as ours:
            if not ours:
                return super().find(stage, key)
            damage = self._fetch(there)
        return (None, damage) if damage else super().find(stage, key)

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the only right to make a key, on this machine by a lock and among all by a lease."""
        with super().lock(stage, key, on_wait):
            self._check()
            with Lease(self.bucket, f"leases/{stage}-{key}.json").held(on_wait):
                yield

    def publish(
        self, stage: str, key: str, out: Path, parts: dict[str, str], meta: dict[str, str], seconds: float
    ) -> Record:
        """Publish in the cache, then put the files into the bucket, the record last.

        Raises StoreBroken; what is in the cache then is sent when it is next found there.
        """
        self._sent_path(stage, key).unlink(missing_ok=True)
        record = super().publish(stage, key, out, parts, meta, seconds)
        self._send(record, again=True)
        return record

    def _check(self) -> None:
        """Reach the bucket before anything takes long; raises StoreBroken for one that is not there or not ours."""
        if self._checked:
            return
        if (said := self.bucket.read("store.json")) is None:
            self.bucket.write("store.json", json.dumps(FORMAT).encode())
        elif said != json.dumps(FORMAT).encode():
            raise StoreBroken(
                f"{self.bucket.url}/store.json is of another format: give another prefix with NIGHTJAR_STORE"
            )
        self._checked = True

    def _read(self, stage: str, key: str) -> Record | str:
        """Return a record in the bucket, or why there is none that can be used: empty where there is none at all."""
        data = self.bucket.read(f"records/{stage}/{key}.json")
        if data is None:
            return ""
        try:
            record = Record.model_validate_json(data)
        except (ValidationError, UnicodeDecodeError):
            return "its remote record is damaged"
        if (record.stage, record.key) != (stage, key) or not is_valid_record(record):
            return "its remote record is damaged"
        return record

    def _fetch(self, record: Record) -> str:
        """Bring an artifact into the cache, whose key's lock we hold; return what is wrong with it, if anything is.

        Whole files of an attempt that was cut off are not fetched again.
        """
        folder = self.work(record.stage, record.key) / "fetched"
        log.info("%s: fetching %d files, %d bytes", record.stage, len(record.files), sum(s for s, _ in _files(record)))
        with storage_errors():
            for name in record.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            wanted = [(folder / name, sha256) for name, (_, sha256) in record.files.items()]
            damages = list(pool.map(lambda each: self._fetch_file(*each), wanted))
        for name, damage in zip(record.files, damages, strict=True):
            if damage:
                return f"{name} {damage} in {self.bucket.url}"
        for path in content_files(folder):  # of an attempt at an earlier record
            if path.relative_to(folder).as_posix() not in record.files:
                path.unlink()
        self.place(folder, record)
        shutil.rmtree(self.work(record.stage, record.key), ignore_errors=True)
        self._note_sent(record)
        return ""

    def _fetch_file(self, path: Path, sha256: str) -> str:
        """Fetch one file and hold it against its hash; return what is wrong with it."""
        if path.is_file() and digest_file(path) == sha256:
            return ""
        half = path.with_name(f"{path.name}.part")
        for _ in range(2):  # it may have been altered on the way
            if not self.bucket.download(_blob(sha256), half):
                self._damaged.add(sha256)
                return "is missing"
            if digest_file(half) == sha256:
                with storage_errors(), half.open("rb+") as file:
                    os.fsync(file.fileno())
                half.rename(path)
                return ""
            half.unlink()
        self._damaged.add(sha256)
        return "was altered"

    def _send(self, record: Record, again: bool) -> None:
        """Put an artifact of the cache into the bucket, blobs first, the record last.

        again: although there is one of its key; else it is left to be, and nobody is asked where we know of it.
        """
        folder = self.root / record.stage / record.key
        text = record.model_dump_json(indent=1)
        noted = self._sent_path(record.stage, record.key)
        with contextlib.suppress(FileNotFoundError):
            if not again and noted.read_text(encoding="utf-8") == self._sent(record):
                return
        self._check()
        name = f"records/{record.stage}/{record.key}.json"
        if again or isinstance(self._read(record.stage, record.key), str):
            by_content = {sha256: folder / file for file, (_, sha256) in record.files.items()}
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda each: self._send_file(*each), by_content.items()))
            self.bucket.write(name, text.encode())
        self._damaged -= {sha256 for _, sha256 in _files(record)}
        self._note_sent(record)

    def _send_file(self, sha256: str, path: Path) -> None:
        seen = self.bucket.look(_blob(sha256))
        fresh = seen is not None and seen.bytes == path.stat().st_size and time.time() - seen.written_s < FRESH_S
        if not fresh or sha256 in self._damaged:
            self.bucket.upload(path, _blob(sha256))

    def _sent_path(self, stage: str, key: str) -> Path:
        return self.root / ".sent" / f"{stage}-{key}.json"

    def _sent(self, record: Record) -> str:
        return json.dumps({"url": self.bucket.url, "record": digest(record.model_dump(mode="json"))})

    def _note_sent(self, record: Record) -> None:
        with contextlib.suppress(OSError):  # it is asked for again
            write_atomic(self._sent_path(record.stage, record.key), self._sent(record))


class Lease:
    """The right to make a key, in a bucket: a file that one of many can create, and that changes as its holder lives.

    Clocks are not compared: who waits watches the file by its own. Where a dead run's lease is taken over by two at the
    same moment, both make the key; that is a waste and no harm.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.bucket, self.name, self.by = bucket, name, lock_owner()
        self._over = threading.Event()

    @contextlib.contextmanager
    def held(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lease, and renew it while the caller works."""
        self._take(on_wait)
        renewing = threading.Thread(target=self._renew, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._over.set()
            renewing.join()
            with contextlib.suppress(StoreBroken):  # then it goes stale
                self.bucket.remove(self.name)

    def _take(self, on_wait: Callable[[], None]) -> None:
        said, since = None, time.monotonic()
        while not self.bucket.create(self.name, self._text(0)):
            if said is None:
                on_wait()
            now = self.bucket.read(self.name)
            if now != said:
                said, since = now, time.monotonic()
            elif time.monotonic() - since > STALE_S:
                log.warning("taking over from a run that has not been heard of for %d s", STALE_S)
                self.bucket.remove(self.name)
                continue
            time.sleep(LOOK_S)

    def _renew(self) -> None:
        count = 0
        while not self._over.wait(RENEW_S):
            count += 1
            with contextlib.suppress(StoreBroken):
                self.bucket.write(self.name, self._text(count))

    def _text(self, count: int) -> bytes:
        return json.dumps({"by": self.by, "renewed": count}).encode()


def open_store() -> Store:
    """Open the store that NIGHTJAR_STORE names, a folder or a URL; without it, that of this checkout.

    Raises BadOptions or Missing for a URL that cannot be one; nothing is reached yet.
    """
    url = remote_url()
    return Store(store_folder()) if url is None else RemoteStore(store_folder(), Bucket(url))


def is_valid_record(record: Record) -> bool:
    """Tell whether a record that came from elsewhere agrees with itself and names files of its own folder only."""
    names = [PurePosixPath(name) for name in record.files]
    inside = all(not name.is_absolute() and name.parts and ".." not in name.parts for name in names)
    hashes = all(len(sha256) == 64 and sha256.isalnum() for _, sha256 in record.files.values())
    return inside and hashes and record.sha256 == digest({name: sha256 for name, (_, sha256) in record.files.items()})


def _files(record: Record) -> list[tuple[int, str]]:
    return list(record.files.values())


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"
