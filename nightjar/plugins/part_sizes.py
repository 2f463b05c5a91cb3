"""Sizes of a model's parts before the export: what a plan prints, and what a target's compiler cannot take.

A family with sizes has `sizes.py`: `part_bytes(checkpoint, recipe, clamp)`. A target with a limit has `PART_LIMIT`:
the most bytes of a part's float32 weights, and why.
"""

from pathlib import Path

from nightjar.errors import BadOptions
from nightjar.plugins.lint import Finding, Problem, findings_of
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import Plugin, plugin
from nightjar.store.fingerprint import module_file

SMALLEST_WEIGHT = 8  # a checkpoint's weight may have half a byte, and has four in float32


def part_bytes(family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> dict[str, int]:
    """Return the bytes of each part's weights in float32, nothing for a family without sizes."""
    if module_file(f"models.{family}.sizes") is None:
        return {}
    found: dict[str, int] = plugin("models", family, "sizes").load().part_bytes(checkpoint, recipe, clamp)
    return found


def large_parts(target: Plugin, family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> list[Finding]:
    """List the parts that are too large for a target's compiler."""
    most, why = getattr(target.load(), "PART_LIMIT", (None, ""))
    files = [checkpoint] if checkpoint.is_file() else checkpoint.glob("*")
    if most is None or SMALLEST_WEIGHT * sum(path.stat().st_size for path in files) <= most:  # reads no checkpoint
        return []
    remedy = "take a smaller model or a target without this limit, such as onnx or rknn"
    return [
        finding
        for part, size in part_bytes(family, checkpoint, recipe, clamp).items()
        if size > most
        for finding in findings_of(
            part, [Problem("refuse", part, "weights", f"{size / 1e6:,.0f} MB of float32 weights: {why}", remedy)]
        )
    ]


def refuse_large_parts(target: Plugin, family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> None:
    """Raise BadOptions for a part that is too large for a target's compiler."""
    for found in large_parts(target, family, checkpoint, recipe, clamp):
        raise BadOptions(f"target {target.name} cannot take the {found.part}, {found.why}; {found.remedy}")
