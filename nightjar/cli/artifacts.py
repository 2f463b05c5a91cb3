"""artifacts ls, gc, verify: commands on the artifact store."""

import argparse
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.filesize import decimal
from rich.markup import escape

from nightjar.cli.command import add_command, add_group, add_json, write_json
from nightjar.cli.console import Screen
from nightjar.errors import BadOptions
from nightjar.progress import listening
from nightjar.store.gc import Entry, age, collect, verify
from nightjar.store.remote import RemoteStore, open_store
from nightjar.store.remote_gc import collect_remote, verify_remote

UNNEEDED = "nothing needs it"


def add(commands: Any) -> None:
    """Add them to the command line."""
    artifacts = add_group(commands, "artifacts", "the store: list it, remove what nothing needs, verify it")
    listing = add_command(artifacts, "ls", "list artifacts, and why they are kept", _ls)
    listing.add_argument("--each", action="store_true", help="list every artifact by its key, with all reasons")
    collecting = add_command(artifacts, "gc", "remove what nothing needs", _gc)
    collecting.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    nights = "keep all artifacts of the last N nights (default: 7)"
    recent = "keep artifacts used more recently than AGE: 36h, 10d (default: 2d; of a remote store 30d)"
    for parser in (listing, collecting):
        parser.add_argument("--keep-nights", type=int, metavar="N", help=nights)
        parser.add_argument("--older-than", metavar="AGE", help=recent)
    verifying = add_command(artifacts, "verify", "read every byte and report damage; deletes nothing", _verify)
    remote = "the remote store at the URL of NIGHTJAR_STORE, instead of its cache here"
    for parser in (listing, collecting, verifying):
        parser.add_argument("--remote", action="store_true", help=remote)
        add_json(parser)


def _ls(arguments: argparse.Namespace) -> None:
    store, bucket, place = _places(arguments)
    entries = _survey(store, bucket, arguments)
    _show_entries(entries, place, arguments.each)
    write_json(arguments, {"store": place, "artifacts": [entry.model_dump() for entry in entries]})


def _show_entries(entries: Sequence[Entry], place: str, each: bool) -> None:
    """List a store by stage and reason, or `each` artifact with all its reasons."""
    screen, now = Screen(), time.time()
    if each:
        groups = [
            (entry.stage, entry.key, [entry], "; ".join(entry.why) or UNNEEDED)
            for entry in sorted(entries, key=lambda entry: (entry.stage, -entry.used_s))
        ]
    else:
        by_reason: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            by_reason.setdefault((entry.stage, entry.why[0] if entry.why else UNNEEDED), []).append(entry)
        groups = [(stage, str(len(group)), group, why) for (stage, why), group in sorted(by_reason.items())]
    rows = []
    for stage, name, group, why in groups:
        made_s, used_s = max(entry.made_s for entry in group), max(entry.used_s for entry in group)
        rows.append((stage, name, _total(group), age(now - made_s), age(now - used_s), escape(why)))
    if rows:
        columns = ("stage", "key" if each else "count", "size", "made", "last used", "kept because")
        screen.table(columns, rows, ("stage", "key", "kept because"), ("kept because",))
    needed = [entry for entry in entries if entry.why]
    total = f"{len(entries)} artifacts, {_total(entries)} in {place}; needed: {len(needed)}, {_total(needed)}"
    screen.print(total)


def _total(entries: Iterable[Entry]) -> str:
    return decimal(sum(entry.bytes for entry in entries))


def _gc(arguments: argparse.Namespace) -> None:
    store, bucket, place = _places(arguments)
    entries, dry_run = _survey(store, bucket, arguments), arguments.dry_run
    done = collect_remote(bucket, entries, dry_run=dry_run) if bucket else collect(store, entries, dry_run=dry_run)
    Screen().render("collected.txt", done=done, place=place)
    write_json(arguments, {"store": place, **done.model_dump()})


def _verify(arguments: argparse.Namespace) -> int:
    screen = Screen()
    store, bucket, place = _places(arguments)
    with screen, listening(lambda done, total: screen.progress("verify", done, total)):
        count, damages = verify_remote(bucket) if bucket else verify(store)
    screen.render("damages.txt", count=count, damages=damages, place=place)
    found = [damage.model_dump() for damage in damages]
    write_json(arguments, {"store": place, "artifacts": count, "damages": found})
    return 4 if damages else 0


def _places(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    """Open the store, and with --remote the bucket that it is shared by; raises BadOptions where there is none."""
    store = open_store()
    if not arguments.remote:
        return store, None, str(store.root)
    if not isinstance(store, RemoteStore):
        raise BadOptions(f"--remote, and the store is a folder, {store.root}: set NIGHTJAR_STORE to s3://bucket/prefix")
    return store, store.bucket, store.bucket.url


def _survey(store: Any, bucket: Any, arguments: argparse.Namespace) -> list[Any]:
    """List every artifact with the reasons to keep it; raises BadOptions for a wrong limit."""
    from nightjar.nightly.history import History  # pandas
    from nightjar.nightly.retention import remote_retention_entries, retention_entries

    limits: dict[str, Any] = {}
    if arguments.keep_nights is not None:
        if arguments.keep_nights < 0:
            raise BadOptions(f"--keep-nights {arguments.keep_nights} is less than none: give 0 or more")
        limits["keep_nights"] = arguments.keep_nights
    if arguments.older_than is not None:
        if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([hd])", arguments.older_than)):
            raise BadOptions(f"--older-than {arguments.older_than} is no age: give hours or days, such as 36h or 10d")
        limits["older_than_s"] = float(found[1]) * (3600 if found[2] == "h" else 86400)
    if bucket:
        return remote_retention_entries(bucket, History(), **limits)
    return retention_entries(store, History(), **limits)
