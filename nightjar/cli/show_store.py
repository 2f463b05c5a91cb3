"""What `nightjar artifacts` prints."""

import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nightjar.store.gc import Collected, Damage, Entry
from nightjar.text import age

UNNEEDED = "nothing needs it"


def show_entries(entries: Sequence[Entry], place: str, each: bool = False) -> None:
    """List a store by stage and reason, or `each` artifact with all its reasons."""
    console = _console()
    table = Table(box=None, padding=(0, 2))
    for column in ("stage", "key" if each else "count", "size", "made", "last used", "kept because"):
        right = column in ("count", "size", "made", "last used")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "kept because")
    now = time.time()
    if each:
        for entry in sorted(entries, key=lambda entry: (entry.stage, -entry.used_s)):
            why = "; ".join(entry.why) or UNNEEDED
            ages = (age(now - entry.made_s), age(now - entry.used_s))
            table.add_row(entry.stage, entry.key, size(entry.bytes), *ages, escape(why))
    else:
        for (stage, why), group in sorted(_by_reason(entries).items()):
            made, used = (max(getattr(entry, name) for entry in group) for name in ("made_s", "used_s"))
            cells = (str(len(group)), size(sum(entry.bytes for entry in group)), age(now - made), age(now - used))
            table.add_row(stage, *cells, escape(why))
    if entries:
        console.print(table)
    needed = [entry for entry in entries if entry.why]
    console.print(
        f"{len(entries)} artifacts, {size(sum(entry.bytes for entry in entries))} in {place}; "
        f"needed: {len(needed)}, {size(sum(entry.bytes for entry in needed))}",
        markup=False,
    )


def show_collected(done: Collected, place: str) -> None:
    """Print what went, by stage, or would go."""
    console = _console()
    would = "would be " if done.dry_run else ""
    by_stage: dict[str, list[Entry]] = {}
    for entry in done.removed:
        by_stage.setdefault(entry.stage, []).append(entry)
    for stage, group in sorted(by_stage.items()):
        console.print(f"  {stage:<14} {len(group):>5}  {size(sum(entry.bytes for entry in group)):>9}  {would}removed")
    if done.loose:
        console.print(f"  of no artifact {len(done.loose):>5}             {would}removed")
    console.print(
        f"{would}removed: {len(done.removed)} artifacts, {size(done.freed_bytes)}; "
        f"kept: {done.kept} artifacts, {size(done.kept_bytes)} in {place}",
        markup=False,
    )


def show_damages(count: int, damages: Iterable[Damage], place: str) -> None:
    """Name what is damaged, a line each."""
    console = _console()
    found = list(damages)
    for damage in found:
        console.print(f"  [red]damaged[/red]  {damage.stage}/{damage.key}: {escape(damage.what)}")
    said = "every byte is as recorded" if not found else f"{len({(d.stage, d.key) for d in found})} damaged"
    console.print(f"{count} artifacts in {place} read: {said}", markup=False)


def size(count: int) -> str:
    """Write bytes as people read them."""
    for unit, bound in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bound:
            return f"{count / bound:.1f} {unit}"
    return f"{count} B"


def _by_reason(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.stage, entry.why[0] if entry.why else UNNEEDED), []).append(entry)
    return found


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console
