"""Console output of nights and of the two sides of a cell."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from nightjar.cli.console import COLOURS, Screen
from nightjar.nightly.outcomes import Failure
from nightjar.progress import StageOutcome

NIGHT_COLOURS = {**COLOURS, "BROKEN": "red", "MISSING": "yellow"}
MOST_CLIPS = 20


def show_night(screen: Screen, results: dict[str, Any]) -> None:
    """Print a line per cell, what changed, and the night's sentence."""
    columns = ("cell", "", "tier", "WER %", "Δ", "95 %", "size", "RTF p50", "stages", "s")
    screen.table(columns, map(_cell_row, results["cells"]), columns[:3], ("cell",))
    for cell in results["cells"]:
        if cell["outcome"] in ("BROKEN", "MISSING"):
            screen.print(f"  {cell['cell']}: {cell['error']}")
    for finding in results["findings"]:
        other = "[dim]other [/dim]" if finding["kind"] == "versions" else "[green]better[/green]"
        mark = "[red]worse [/red]" if finding["regression"] else other
        screen.say(f"  {mark} {escape(finding['sentence'])}")
    night = results["night"]
    screen.say(f"[bold {COLOURS[night['outcome']]}]night {night['night']}[/]  {escape(results['sentence'])}")


def _cell_row(cell: dict[str, Any]) -> tuple[str, ...]:
    score = ("", "", "")
    stages = ""
    if cell["wer"] is not None:
        score = (f"{cell['wer']:.2f}", f"{cell['delta_wer']:+.2f}", f"{cell['low']:+.2f}…{cell['high']:+.2f}")
        stages = f"{cell['executed']} ran" if cell["executed"] else "cached"
    return (
        escape(cell["cell"]),
        f"[{NIGHT_COLOURS[cell['outcome']]}]{cell['outcome']}[/]",
        cell["tier"],
        *score,
        f"{cell['size_bytes'] / 1e6:.1f} MB" if cell["size_bytes"] else "",
        f"{cell['rtf']:.3f}" if cell["rtf"] is not None else "",
        stages,
        f"{cell['seconds']:.0f}",
    )


def show_planned_night(screen: Screen, plans: Sequence[tuple[str, Sequence[StageOutcome] | Failure]]) -> None:
    """Print what each cell would run."""
    for cell, plan in plans:
        if isinstance(plan, Failure):
            screen.say(f"{escape(cell)}: [yellow]{plan.outcome}[/yellow] {escape(plan.message)}")
            continue
        todo = [outcome for outcome in plan if not outcome.cached]
        screen.say(f"{escape(cell)}: {len(todo)} of {len(plan)} stages would run")
        for outcome in todo:
            screen.say(f"  {outcome.name:<26} [dim]{escape(outcome.why)}[/dim]")
    screen.say("nothing was run")


def show_bisected(screen: Screen, results: dict[str, Any]) -> None:
    """Print both sides, the paired difference, what differs, and the clips with another text."""
    columns = ("", "verdict", "WER %", "float %", "Δ", "size", "RTF p50")
    rows = [
        (
            f"{letter} [dim]{escape(side['name'])}[/dim]",
            side["outcome"],
            f"{side['wer']:.2f}",
            f"{side['wer_float']:.2f}",
            f"{side['delta_wer']:+.2f}",
            f"{side['size_bytes'] / 1e6:.2f} MB",
            f"{side['rtf']:.4f}" if side["rtf"] is not None else "–",
        )
        for letter, side in zip("AB", results["sides"], strict=True)
    ]
    screen.table(columns, rows, columns[:2], columns)
    for difference in results["differs"]:
        screen.say(f"  differs   {escape(difference)}")
    shared, other = (
        ", ".join(stage["name"] for stage in results["stages"] if stage["same"] is same) or "none"
        for same in (True, False)
    )
    screen.say(f"  stages    other artifacts: {other}; shared: {shared}")
    for part in sorted(results["sizes"][0].keys() | results["sizes"][1].keys()):
        a, b = (sizes.get(part, 0) for sizes in results["sizes"])
        screen.say(f"  size      {part}: {a / 1e6:.2f} → {b / 1e6:.2f} MB" + (" (equal)" if a == b else ""))
    for clip in results["clips"][:MOST_CLIPS]:
        screen.print(
            f"  {clip['id']}: {clip['errors_before']} → {clip['errors_after']} errors\n"
            f"    text {clip['said']}\n    A    {clip['before'] or '(empty)'}\n    B    {clip['after'] or '(empty)'}"
        )
    if len(results["clips"]) > MOST_CLIPS:
        screen.say(f"  … and {len(results['clips']) - MOST_CLIPS} more clips; --json has all")
    both = results["wer"]
    if both is None:
        screen.say("A and B have no clip in common")
        return
    rate = "WER" if results["unit"] == "word" else "CER"
    worse, better = both["low"] > 0, both["high"] < 0
    verdict = f"{rate} is worse in B" if worse else f"{rate} is better in B" if better else "no difference is shown"
    screen.say(
        f"[bold]{verdict}[/]: {rate} {both['before']:.2f} → {both['after']:.2f} %, "
        f"{both['after'] - both['before']:+.2f} points [{both['low']:+.2f}, {both['high']:+.2f}] on the same "
        f"{both['clips']} clips, of which {len(results['clips'])} have another text"
    )
