"""Sizes of a Whisper's parts, known before the export."""

from pathlib import Path

import torch

from models.whisper.checkpoint import read_dims
from models.whisper.export import clamp_recipe, count_frames
from models.whisper.trace import make_parts
from nightjar.plugins.recipe import Recipe


def part_bytes(checkpoint: Path, recipe: Recipe, clamp: bool) -> dict[str, int]:
    """Return the bytes of each part's weights in float32, from the dimensions; raises what `export` raises for them."""
    dims = read_dims(checkpoint)
    clamped = clamp_recipe(recipe, dims)
    n_frames = count_frames(clamped if clamp else recipe, dims)
    with torch.device("meta"):
        parts = make_parts(dims, clamped.model_dump(), n_frames // 2)
    return {
        name: 4 * sum(tensor.numel() for tensor in (*part.module.parameters(), *part.module.buffers()))
        for name, part in parts.items()
    }
