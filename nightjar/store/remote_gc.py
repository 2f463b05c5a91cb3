"""What a bucket keeps and why, beyond what nightjar/store/gc.py says of a folder: others may use it whom we do not see.

A run fetches an artifact whole before it uses it, so removing one there takes nothing from a run. What counts is time:
a file that no record names may be on its way to one, and is left for GRACE_S; a writer sends again what is older than
half of that. The history that is asked is this machine's, so a bucket is collected where its history lies.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from nightjar.progress import tick
from nightjar.store.artifact import Record
from nightjar.store.bucket import Bucket, RemoteFile
from nightjar.store.gc import Collected, Damage, Entry, Ref
from nightjar.store.remote import is_valid_record
from nightjar.text import DAY_S

GRACE_S = 2 * DAY_S


def collect_remote(
    bucket: Bucket, entries: Sequence[Entry], *, grace_s: float = GRACE_S, dry_run: bool = False
) -> Collected:
    """Remove the records that have no reason to be kept, then the blobs that no record names any more.

    entries: a survey of the bucket (nightjar/nightly/retention.py); grace_s: how old a blob must be. Runs may go on
    meanwhile.
    """
    removed = tuple(entry for entry in entries if not entry.why)
    gone = {entry.ref for entry in removed}
    if not dry_run:
        for stage, key in gone:
            bucket.remove(f"records/{stage}/{key}.json")
    named = set[str]()
    for seen, ref in records(bucket):  # those that came since the survey, too
        record = read_record(bucket, seen.name, ref) if ref not in gone else None
        named |= {sha256 for _, sha256 in record.files.values()} if record is not None else set()
    freed, loose = 0, list[str]()
    before = time.time() - grace_s
    for seen in _unnamed(bucket, named):
        now = bucket.look(seen.name) if seen.written_s <= before else None
        if now is None or now.written_s > before:  # sent again meanwhile
            continue
        freed += seen.bytes
        loose.append(seen.name)
        if not dry_run:
            bucket.remove(seen.name)
    kept = [entry for entry in entries if entry.ref not in gone]
    return Collected(
        removed=removed,
        kept=len(kept),
        kept_bytes=sum(entry.bytes for entry in kept),
        loose=tuple(loose),
        freed_bytes=freed,
        dry_run=dry_run,
    )


def verify_remote(bucket: Bucket) -> tuple[int, list[Damage]]:
    """Fetch every byte that a record names; return how many artifacts there are and what of them is damaged."""
    found, state = list[Damage](), dict[str, str]()
    listed = list(records(bucket))
    for number, (seen, (stage, key)) in enumerate(listed, 1):
        record = read_record(bucket, seen.name, (stage, key))
        if record is None:
            found.append(Damage(stage=stage, key=key, what="its record is damaged"))
        for name, (_, sha256) in record.files.items() if record is not None else ():
            if sha256 not in state:
                state[sha256] = _state(bucket, sha256)
            if state[sha256]:
                found.append(Damage(stage=stage, key=key, what=f"{name} {state[sha256]}"))
        tick(number, len(listed))
    return len(listed), found


def records(bucket: Bucket) -> Iterator[tuple[RemoteFile, Ref]]:
    """Yield every record of a bucket with the artifact that it is of."""
    for seen in bucket.list("records"):
        _, stage, file = seen.name.split("/", 2)
        if file.endswith(".json"):
            yield seen, (stage, file.removesuffix(".json"))


def read_record(bucket: Bucket, name: str, ref: Ref) -> Record | None:
    """Read a record, None for one that is damaged or of another artifact."""
    try:
        record = Record.model_validate_json(bucket.read(name) or b"")
    except (ValidationError, UnicodeDecodeError):
        return None
    return record if (record.stage, record.key) == ref and is_valid_record(record) else None


def _unnamed(bucket: Bucket, named: set[str]) -> Iterator[RemoteFile]:
    """Yield blobs that no record names, leases of the dead, and what was cut off on its way."""
    for seen in bucket.list("blobs"):
        if seen.name.rpartition("/")[2] not in named:
            yield seen
    yield from bucket.list("leases")
    yield from (seen for seen in bucket.list("records") if seen.name.endswith(".part"))


def _state(bucket: Bucket, sha256: str) -> str:
    """Read a blob; say what is wrong with it."""
    read = hashlib.sha256()
    there = False
    for chunk in bucket.chunks(f"blobs/{sha256[:2]}/{sha256}"):
        there = True
        read.update(chunk)
    if not there:
        return "is missing"
    return "" if read.hexdigest() == sha256 else "was altered"
