"""What the command line prints of nights and of a cell's two sides."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from nightjar.cli.console import COLOURS, Screen
from nightjar.nightly.outcomes import Failure
from nightjar.progress import StageOutcome

NIGHT_COLOURS = {**COLOURS, "BROKEN": "red", "MISSING": "yellow"}
MOST_CLIPS = 20


def show_night(screen: Screen, results: dict[str, Any]) -> None:
    """Print a line per cell, what changed, and the night's sentence."""
    table = Table(box=None, padding=(0, 2))
    for column in ("cell", "", "tier", "WER %", "Δ", "95 %", "size", "RTF p50", "stages", "s"):
        table.add_column(
            column, justify="left" if column in ("cell", "", "tier") else "right", no_wrap=column != "cell"
        )
    for cell in results["cells"]:
        colour = NIGHT_COLOURS[cell["outcome"]]
        scored = cell["wer"] is not None
        table.add_row(
            escape(cell["cell"]),
            f"[{colour}]{cell['outcome']}[/{colour}]",
            cell["tier"],
            f"{cell['wer']:.2f}" if scored else "",
            f"{cell['delta_wer']:+.2f}" if scored else "",
            f"{cell['low']:+.2f}…{cell['high']:+.2f}" if scored else "",
            f"{cell['size_bytes'] / 1e6:.1f} MB" if cell["size_bytes"] else "",
            f"{cell['rtf']:.3f}" if cell["rtf"] is not None else "",
            (f"{cell['executed']} ran" if cell["executed"] else "cached") if scored else "",
            f"{cell['seconds']:.0f}",
        )
    screen.console.print(table)
    for cell in results["cells"]:
        if cell["outcome"] in ("BROKEN", "MISSING"):
            screen.console.print(f"  {cell['cell']}: {cell['error']}", markup=False)
    for finding in results["findings"]:
        other = "[dim]other [/dim]" if finding["kind"] == "versions" else "[green]better[/green]"
        mark = "[red]worse [/red]" if finding["regression"] else other
        screen.say(f"  {mark} {escape(finding['sentence'])}")
    night = results["night"]
    colour = COLOURS[night["outcome"]]
    screen.say(f"[bold {colour}]night {night['night']}[/bold {colour}]  {escape(results['sentence'])}")


def show_planned_night(screen: Screen, planned: Sequence[tuple[str, Sequence[StageOutcome] | Failure]]) -> None:
    """Print of each cell what would run."""
    for cell, what in planned:
        if isinstance(what, Failure):
            screen.say(f"{escape(cell)}: [yellow]{what.outcome}[/yellow] {escape(what.message)}")
            continue
        todo = [outcome for outcome in what if not outcome.cached]
        screen.say(f"{escape(cell)}: {len(todo)} of {len(what)} stages would run")
        for outcome in todo:
            screen.say(f"  {outcome.name:<26} [dim]{escape(outcome.why)}[/dim]")
    screen.say("nothing was run")


def show_bisected(screen: Screen, results: dict[str, Any]) -> None:
    """Print both sides, the paired difference, what differs and the clips that are heard otherwise."""
    table = Table(box=None, padding=(0, 2))
    for column in ("", "verdict", "WER %", "float %", "Δ", "size", "RTF p50"):
        table.add_column(column, justify="left" if column in ("", "verdict") else "right", overflow="fold")
    for letter, side in zip("AB", results["sides"], strict=True):
        table.add_row(
            f"{letter} [dim]{escape(side['name'])}[/dim]",
            side["outcome"],
            f"{side['wer']:.2f}",
            f"{side['wer_float']:.2f}",
            f"{side['delta_wer']:+.2f}",
            f"{side['size_bytes'] / 1e6:.2f} MB",
            f"{side['rtf']:.4f}" if side["rtf"] is not None else "–",
        )
    screen.console.print(table)
    for what in results["differs"]:
        screen.say(f"  differs   {escape(what)}")
    shared = [stage["name"] for stage in results["stages"] if stage["same"]]
    other = [stage["name"] for stage in results["stages"] if not stage["same"]]
    screen.say(f"  stages    other artifacts: {', '.join(other) or 'none'}; shared: {', '.join(shared) or 'none'}")
    for part in sorted(results["sizes"][0].keys() | results["sizes"][1].keys()):
        a, b = (sizes.get(part, 0) for sizes in results["sizes"])
        screen.say(f"  size      {part}: {a / 1e6:.2f} → {b / 1e6:.2f} MB" + (" (equal)" if a == b else ""))
    for clip in results["clips"][:MOST_CLIPS]:
        screen.console.print(
            f"  {clip['id']}: {clip['errors_before']} → {clip['errors_after']} errors\n"
            f"    said {clip['said']}\n    A    {clip['before'] or '(empty)'}\n    B    {clip['after'] or '(empty)'}",
            markup=False,
        )
    if len(results["clips"]) > MOST_CLIPS:
        screen.say(f"  … and {len(results['clips']) - MOST_CLIPS} more clips; --json has all")
    both = results["wer"]
    if both is None:
        screen.say("A and B heard no clip in common")
        return
    rate = "WER" if results["unit"] == "word" else "CER"
    verdict = "B hears worse" if both["low"] > 0 else "B hears better" if both["high"] < 0 else "no difference is shown"
    screen.say(
        f"[bold]{verdict}[/bold]: {rate} {both['before']:.2f} → {both['after']:.2f} %, "
        f"{both['after'] - both['before']:+.2f} points [{both['low']:+.2f}, {both['high']:+.2f}] on the same "
        f"{both['clips']} clips, of which {len(results['clips'])} have another text"
    )
