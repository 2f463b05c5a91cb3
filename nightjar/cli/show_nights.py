"""Console output of nights and of the two sides of a cell."""

from typing import Any

from rich.markup import escape

from nightjar.cli.console import COLOURS, Screen
from nightjar.scoring.normalize import RATES

NIGHT_COLOURS = {**COLOURS, "BROKEN": "red", "MISSING": "yellow"}
MOST_CLIPS = 20


def show_night(screen: Screen, results: dict[str, Any]) -> None:
    """Print a line per cell, what changed, and the night's sentence."""
    columns = ("cell", "", "tier", "WER %", "Δ", "95 %", "size", "RTF p50", "stages", "s")
    screen.table(columns, map(_cell_row, results["cells"]), columns[:3], ("cell",))
    screen.render("night.txt", **results, colours=COLOURS)


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
    parts = sorted(results["sizes"][0].keys() | results["sizes"][1].keys())
    screen.render("bisected.txt", **results, parts=parts, rates=RATES, most_clips=MOST_CLIPS)
