"""Sizes of a model's parts before the export: what a plan prints, and what a target's compiler cannot take.

A target with a limit has PART_LIMIT: the most bytes of a part's float32 weights, and why.
"""

from pathlib import Path

from nightjar.plugins.lint import Finding, Problem, findings_of
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import Plugin, plugin

SMALLEST_WEIGHT = 8  # in a checkpoint: half a byte, of four in float32
REMEDY = "take a smaller model, or a target without this limit, such as onnx or rknn"


def part_bytes(family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> dict[str, int]:
    """Return the bytes of each part's weights in float32, nothing for a family that does not tell."""
    known = getattr(plugin("models", family, "export").load(), "part_bytes", None)
    return known(checkpoint, recipe, clamp) if known else {}


def large_parts(target: Plugin, family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> list[Finding]:
    """List the parts that are too large for a target's compiler."""
    most, why = getattr(target.load(), "PART_LIMIT", (None, ""))
    files = checkpoint.glob("*") if checkpoint.is_dir() else [checkpoint]
    if most is None or SMALLEST_WEIGHT * sum(path.stat().st_size for path in files) <= most:  # opens no checkpoint
        return []
    found: list[Finding] = []
    for part, size in part_bytes(family, checkpoint, recipe, clamp).items():
        if size > most:
            whole = f"{size / 1e6:,.0f} MB of float32 weights: {why}"
            found += findings_of(part, [Problem("refuse", part, "weights", whole, REMEDY)])
    return found
