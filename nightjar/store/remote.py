"""A store shared by URL: stages read and write a local cache, and new artifacts are sent to the URL.

    blobs/<2 digits>/<sha256>      the files, by content, sent once
    records/<stage>/<key>.json     the same as record.json in the cache; written after all blobs that it names
    leases/<stage>-<key>.json      who is making the artifact; the content changes as long as the holder lives
    store.json                     the format

Readers therefore see only complete artifacts. Every file is verified when it is fetched
(docs/decisions/014-shared-store.md).
"""

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nightjar.errors import StoreBroken
from nightjar.files import digest, digest_file, storage_errors, sync, write_atomic
from nightjar.paths import remote_url, store_folder
from nightjar.process import lock_owner
from nightjar.store.artifact import Record, Store, content_files, parse_record
from nightjar.store.bucket import Bucket

log = logging.getLogger(__name__)

FORMAT = json.dumps({"format": 1}).encode()
PARALLEL_TRANSFERS = 8
FRESH_S = 86400.0  # an older blob is sent again, so that gc does not remove it before our record names it
RENEW_S = 20.0
STALE_S = 90.0  # a lease that is unchanged for so long, by our own clock, belongs to a dead run
POLL_S = 3.0


class RemoteStore(Store):
    """A local cache folder that fetches missing artifacts from a bucket and sends new ones to it."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        super().__init__(root)
        self.bucket = bucket
        self._damaged = set[str]()  # sha256 of blobs whose fetched content did not match
        self._checked = False

    def find(self, stage: str, key: str, has_lock: bool = False) -> tuple[Record | None, str]:
        """Find a record as any store does, and fetch it if needed; raises StoreBroken if the bucket does not answer.

        A fetch takes the key's lock if the caller does not have it; there is none while a run is making the key.
        """
        record, why = super().find(stage, key)
        if record is not None:
            self._send(record, overwrite=False)
            return record, why
        self._check_format()
        data = self.bucket.read(record_name(stage, key))
        if data is None:
            return None, why
        remote = parse_record(data, stage, key)
        if remote is None:
            return None, "its record in the bucket is damaged"
        with contextlib.nullcontext(True) if has_lock else self.try_lock_key(stage, key) as ours:
            if not ours:
                return super().find(stage, key)
            damage = self._fetch(remote)
        return (None, damage) if damage else super().find(stage, key)

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the exclusive right to make a key: a lock on this machine and a lease between machines."""
        with super().lock(stage, key, on_wait):
            self._check_format()
            with lease(self.bucket, f"leases/{stage}-{key}.json", on_wait):
                yield

    def place(self, out: Path, record: Record) -> None:
        """Place a new artifact in the cache, then send the files, the record last.

        Raises StoreBroken; the artifact is then in the cache and is sent when it is next found there.
        """
        self._sent_path(record.stage, record.key).unlink(missing_ok=True)
        super().place(out, record)
        self._send(record, overwrite=True)

    def _check_format(self) -> None:
        """Connect before any long work; raises StoreBroken if the bucket is missing or of another format."""
        if self._checked:
            return
        found = self.bucket.read("store.json")
        if found is None:
            self.bucket.write("store.json", FORMAT)
        elif found != FORMAT:
            raise StoreBroken(
                f"{self.bucket.url}/store.json has another format: give another prefix with NIGHTJAR_STORE"
            )
        self._checked = True

    def _fetch(self, record: Record) -> str:
        """Fetch an artifact into the cache and return what is wrong with it, if anything.

        The caller holds the key's lock. Complete files of an interrupted attempt are not fetched again.
        """
        work = self.work(record.stage, record.key)
        folder = work / "fetched"
        log.info("%s: fetching %d files, %d bytes", record.stage, len(record.files), record.bytes)
        with storage_errors():
            folder.mkdir(parents=True, exist_ok=True)
            for name in record.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            sums = [sha256 for _, sha256 in record.files.values()]
            damages = list(pool.map(self._fetch_file, map(folder.joinpath, record.files), sums))
        for name, damage in zip(record.files, damages, strict=True):
            if damage:
                return f"{name} {damage} in {self.bucket.url}"
        for path in content_files(folder):  # left by an attempt to fetch an earlier record
            if path.relative_to(folder).as_posix() not in record.files:
                path.unlink()
        super().place(folder, record)
        shutil.rmtree(work, ignore_errors=True)
        self._note_sent(record)
        return ""

    def _fetch_file(self, path: Path, sha256: str) -> str:
        """Fetch one file and compare its hash; return what is wrong with it, if anything."""
        if path.is_file() and digest_file(path) == sha256:
            return ""
        damage, partial = "", path.with_name(f"{path.name}.part")
        for _ in range(2):  # the transfer may have altered it
            if not self.bucket.download(blob_name(sha256), partial):
                damage = "is missing"
                break
            if digest_file(partial) == sha256:
                with storage_errors():
                    sync(partial)
                partial.rename(path)
                return ""
            partial.unlink()
            damage = "was altered"
        self._damaged.add(sha256)
        return damage

    def _send(self, record: Record, overwrite: bool) -> None:
        """Send an artifact of the cache to the bucket, blobs first, the record last.

        overwrite: replace the bucket's record of this key. Otherwise an existing one is kept, and the bucket is not
        asked if this cache has noted it.
        """
        folder = self.folder(record.stage, record.key)
        noted = self._sent_path(record.stage, record.key)
        with contextlib.suppress(FileNotFoundError):
            if not overwrite and noted.read_text(encoding="utf-8") == self._sent_note(record):
                return
        self._check_format()
        if overwrite or read_record(self.bucket, (record.stage, record.key)) is None:
            by_content = {sha256: folder / file for file, (_, sha256) in record.files.items()}
            with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
                list(pool.map(self._send_file, by_content.keys(), by_content.values()))
            self.bucket.write(record_name(record.stage, record.key), record.model_dump_json(indent=1).encode())
        self._damaged -= record.file_digests
        self._note_sent(record)

    def _send_file(self, sha256: str, path: Path) -> None:
        remote = self.bucket.stat(blob_name(sha256))
        fresh = remote is not None and remote.bytes == path.stat().st_size and time.time() - remote.written_s < FRESH_S
        if not fresh or sha256 in self._damaged:
            self.bucket.upload(path, blob_name(sha256))

    def _sent_path(self, stage: str, key: str) -> Path:
        return self.root / ".sent" / f"{stage}-{key}.json"

    def _sent_note(self, record: Record) -> str:
        return json.dumps({"url": self.bucket.url, "record": digest(record.model_dump(mode="json"))})

    def _note_sent(self, record: Record) -> None:
        with contextlib.suppress(OSError):  # without the note the bucket is asked again
            write_atomic(self._sent_path(record.stage, record.key), self._sent_note(record))


@contextlib.contextmanager
def lease(bucket: Bucket, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the exclusive right to make a key, by a file in the bucket that only one run can create.

    The holder rewrites the file regularly, and waiting runs watch it by their own clocks: clocks are not compared. If
    two runs take over a dead run's lease at the same moment, both make the key, which is wasteful but harmless.
    """
    by, over = lock_owner(), threading.Event()

    def renew() -> None:
        count = 0
        while not over.wait(RENEW_S):
            count += 1
            with contextlib.suppress(StoreBroken):
                bucket.write(name, _lease_text(by, count))

    last, since = None, time.monotonic()
    while not bucket.create(name, _lease_text(by, 0)):
        if last is None:
            on_wait()
        now = bucket.read(name)
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STALE_S:
            log.warning("taking over the lease of a run that gave no sign of life for %d s", STALE_S)
            bucket.remove(name)
            continue
        time.sleep(POLL_S)
    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(StoreBroken):  # then it becomes stale
            bucket.remove(name)


def _lease_text(by: str, count: int) -> bytes:
    return json.dumps({"by": by, "renewed": count}).encode()


def open_store() -> Store:
    """Open the store that NIGHTJAR_STORE names (a folder or a URL), or the store of this checkout.

    Raises BadOptions or Missing for an invalid URL; does not connect yet.
    """
    url = remote_url()
    return Store(store_folder()) if url is None else RemoteStore(store_folder(), Bucket(url))


def blob_name(sha256: str) -> str:
    """Return the name of a file's content in the bucket."""
    return f"blobs/{sha256[:2]}/{sha256}"


def record_name(stage: str, key: str) -> str:
    """Return the name of an artifact's record in the bucket."""
    return f"records/{stage}/{key}.json"


def read_record(bucket: Bucket, ref: tuple[str, str]) -> Record | None:
    """Read the record of a stage and key; return None if it is missing, damaged or of another artifact."""
    return parse_record(bucket.read(record_name(*ref)) or b"", *ref)
