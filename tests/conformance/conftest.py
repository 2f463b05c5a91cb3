"""Toy graphs, toy speech and what the float graphs hear of it, made once."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.whisper.export import export
from nightjar.boards.board import LocalBoard
from nightjar.boards.ref import BoardRef
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import plugin
from nightjar.sessions.run import run_session


class Toys:
    """Graphs by recipe, and waves."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        rng = np.random.default_rng(5)
        self.waves = {f"clip{i}": np.round(3000 * rng.standard_normal(16000)).astype(np.int16) for i in range(2)}

    def graphs(self, recipe: Recipe) -> Path:
        """Export the toy Whisper by a recipe, once."""
        out = self.folder / recipe.model_dump_json().translate({ord(c): None for c in '{}":, '})
        if not out.exists():
            export(self.checkpoint, recipe, out, clamp=True)
        return out

    def only(self, graphs: Path, part: str, out: Path) -> Path:
        """Give graphs of one part: a compile of it takes seconds."""
        out.mkdir()
        for path in graphs.iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        model = json.loads((graphs / "model.json").read_text())
        model["parts"] = {part: model["parts"][part]}
        (out / "model.json").write_text(json.dumps(model))
        return out

    def hear(self, board: LocalBoard, binary: Path, work: Path, like: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Decode the waves, or go along another binary's tokens and watch the same logits."""
        forced = {line["id"]: line["tokens"][:8] for line in like} or None
        watch = {line["id"]: line["watched"]["ids"] for line in like} or {name: [] for name in self.waves}
        return run_session(board, binary, [], work, decode=True, waves=self.waves, forced=forced, watch=watch)


@pytest.fixture(scope="session")
def toys(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Toys:
    return Toys(random_checkpoint, tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def heard(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the float graphs hear on this machine, eight steps of it."""
    host, folder = plugin("targets", "onnx"), tmp_path_factory.mktemp("heard")
    graphs = toys.graphs(Recipe())
    module = host.load()
    module.compile(graphs, None, module.Options(), folder / "binary")
    lines = toys.hear(board_of(host, "local").connect(), folder / "binary", folder / "work", [])
    for line in lines:
        line["tokens"] = line["tokens"][:8]
        line["watched"] = {name: values[:8] for name, values in line["watched"].items()}
    return lines


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder for as long as the block lasts."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def board_for(name: str) -> BoardRef:
    """Name the board that a target or a stand-in runs on here; raises what is missing."""
    from nightjar.plugins.registry import Plugin

    return board_of(Plugin(module=f"targets.{name}"), None)
