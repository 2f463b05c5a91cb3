"""Cut a checkpoint into static graphs."""

from pathlib import Path

from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import Plugin
from tasks.stage import stage


@stage
def export(*, checkpoint: Path, model: Plugin, recipe: Recipe, clamp: bool, out: Path) -> dict[str, str]:
    """Export a checkpoint's parts as static graphs; `clamp` lets the recipe's window shrink to the model's context."""
    done: Recipe = model.load().export(checkpoint, recipe, out, clamp=clamp)
    return {"window_s": f"{done.window_s:g}", "decoder": done.decoder}
