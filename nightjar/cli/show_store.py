"""Console output of `nightjar artifacts`."""

import time
from collections.abc import Iterable, Sequence

from rich.filesize import decimal
from rich.markup import escape

from nightjar.cli.console import Screen
from nightjar.store.gc import Entry, age

UNNEEDED = "nothing needs it"


def show_entries(entries: Sequence[Entry], place: str, each: bool = False) -> None:
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
