"""Garbage collection and verification of a bucket, which machines that we cannot see may use.

A run fetches an artifact completely before it uses it, so removing one from the bucket harms no run. Only time matters:
a blob that no record names may belong to an upload, and is kept for GRACE_S; uploads send a blob again if it is older
than half of that. The survey reads this machine's history, so collect a bucket where its history is.
"""

import time
from collections.abc import Iterator, Sequence

from nightjar.progress import tick
from nightjar.store.artifact import DAMAGED
from nightjar.store.bucket import Bucket, RemoteFile
from nightjar.store.gc import DAY_S, Collected, Damage, Entry, Ref, summarize
from nightjar.store.remote import blob_name, read_record, record_name

GRACE_S = 2 * DAY_S


def collect_remote(
    bucket: Bucket, entries: Sequence[Entry], *, grace_s: float = GRACE_S, dry_run: bool = False
) -> Collected:
    """Remove the records that have no reason to be kept, then the blobs that no record names any more.

    entries: a survey of the bucket (nightjar/nightly/retention.py); grace_s: minimum age of a removed blob. Runs may go
    on meanwhile.
    """
    removed = [entry for entry in entries if not entry.why]
    gone = {entry.ref for entry in removed}
    if not dry_run:
        for ref in gone:
            bucket.remove(record_name(*ref))
    named = set[str]()
    for _, ref in records(bucket):  # including records written since the survey
        record = read_record(bucket, ref) if ref not in gone else None
        named |= record.file_digests if record is not None else set()
    freed_bytes, loose = 0, list[str]()
    before = time.time() - grace_s
    for file in _unnamed(bucket, named):
        now = bucket.stat(file.name) if file.written_s <= before else None
        if now is None or now.written_s > before:  # too young, or sent again meanwhile
            continue
        freed_bytes += file.bytes
        loose.append(file.name)
        if not dry_run:
            bucket.remove(file.name)
    return summarize(entries, removed, loose, freed_bytes, dry_run)


def verify_remote(bucket: Bucket) -> tuple[int, list[Damage]]:
    """Read every blob that a record names; return the number of artifacts and what is damaged."""
    found, checked = list[Damage](), dict[str, str]()
    listed = list(records(bucket))
    for number, (_, (stage, key)) in enumerate(listed, 1):
        record = read_record(bucket, (stage, key))
        if record is None:
            found.append(Damage(stage=stage, key=key, what=DAMAGED))
        for name, (_, sha256) in record.files.items() if record is not None else ():
            if sha256 not in checked:
                checked[sha256] = _blob_damage(bucket, sha256)
            if checked[sha256]:
                found.append(Damage(stage=stage, key=key, what=f"{name} {checked[sha256]}"))
        tick(number, len(listed))
    return len(listed), found


def records(bucket: Bucket) -> Iterator[tuple[RemoteFile, Ref]]:
    """Yield the file of every record in a bucket, with stage and key."""
    for file in bucket.list("records"):
        _, stage, name = file.name.split("/", 2)
        if name.endswith(".json"):
            yield file, (stage, name.removesuffix(".json"))


def _unnamed(bucket: Bucket, named: set[str]) -> Iterator[RemoteFile]:
    """Yield blobs that no record names, leases, and temporary files of interrupted uploads."""
    yield from (file for file in bucket.list("blobs") if file.name.rpartition("/")[2] not in named)
    yield from bucket.list("leases")
    yield from (file for file in bucket.list("records") if file.name.endswith(".part"))


def _blob_damage(bucket: Bucket, sha256: str) -> str:
    found = bucket.sha256(blob_name(sha256))
    if found is None:
        return "is missing"
    return "" if found == sha256 else "was altered"
