"""Console output of `nightjar artifacts`."""

import time
from collections.abc import Iterable, Sequence

from rich.markup import escape

from nightjar.cli.console import make_table, wide_console
from nightjar.store.gc import Collected, Damage, Entry, age

UNNEEDED = "nothing needs it"
WIDTH = 160


def show_entries(entries: Sequence[Entry], place: str, each: bool = False) -> None:
    """List a store by stage and reason, or `each` artifact with all its reasons."""
    console, now = wide_console(WIDTH), time.time()
    columns = ("stage", "key" if each else "count", "size", "made", "last used", "kept because")
    table = make_table(columns, ("stage", "key", "kept because"), ("kept because",))
    if each:
        for entry in sorted(entries, key=lambda entry: (entry.stage, -entry.used_s)):
            ages = (age(now - entry.made_s), age(now - entry.used_s))
            table.add_row(entry.stage, entry.key, size(entry.bytes), *ages, escape("; ".join(entry.why) or UNNEEDED))
    else:
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            groups.setdefault((entry.stage, entry.why[0] if entry.why else UNNEEDED), []).append(entry)
        for (stage, why), group in sorted(groups.items()):
            ages = (age(now - max(each.made_s for each in group)), age(now - max(each.used_s for each in group)))
            table.add_row(stage, str(len(group)), _total(group), *ages, escape(why))
    if entries:
        console.print(table)
    needed = [entry for entry in entries if entry.why]
    total = f"{len(entries)} artifacts, {_total(entries)} in {place}; needed: {len(needed)}, {_total(needed)}"
    console.print(total, markup=False)


def show_collected(done: Collected, place: str) -> None:
    """Print by stage what gc removed, or would remove."""
    console = wide_console(WIDTH)
    would = "would be " if done.dry_run else ""
    by_stage: dict[str, list[Entry]] = {}
    for entry in done.removed:
        by_stage.setdefault(entry.stage, []).append(entry)
    for stage, group in sorted(by_stage.items()):
        console.print(f"  {stage:<14} {len(group):>5}  {_total(group):>9}  {would}removed")
    if done.loose:
        console.print(f"  of no artifact {len(done.loose):>5}             {would}removed")
    console.print(
        f"{would}removed: {len(done.removed)} artifacts, {size(done.freed_bytes)}; "
        f"kept: {done.kept} artifacts, {size(done.kept_bytes)} in {place}",
        markup=False,
    )


def show_damages(count: int, damages: Iterable[Damage], place: str) -> None:
    """List damaged artifacts, a line per damage."""
    console = wide_console(WIDTH)
    found = list(damages)
    for damage in found:
        console.print(f"  [red]damaged[/red]  {damage.stage}/{damage.key}: {escape(damage.what)}")
    result = f"{len({(d.stage, d.key) for d in found})} damaged" if found else "every byte is as recorded"
    console.print(f"{count} artifacts in {place} read: {result}", markup=False)


def size(count: int) -> str:
    """Format a number of bytes."""
    for unit, bound in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bound:
            return f"{count / bound:.1f} {unit}"
    return f"{count} B"


def _total(entries: Iterable[Entry]) -> str:
    return size(sum(entry.bytes for entry in entries))
