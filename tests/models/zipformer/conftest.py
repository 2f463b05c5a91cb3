"""Models and runners that the tests of this folder share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from models.zipformer.export import export
from nightjar.speech.manifest import Clip, load_speech
from targets.onnx import recipe
from targets.onnx.runner import open_runner
from tests.models.zipformer.second_generation import write_checkpoint

DATA = Path(__file__).resolve().parents[3] / "data"
NANO = DATA / "zipformer-nano"


class Exported:
    """A checkpoint's graphs, opened."""

    def __init__(self, checkpoint: Path, graphs: Path) -> None:
        self.checkpoint, self.graphs = checkpoint, graphs
        export(checkpoint, recipe("zipformer"), graphs)
        self.model: dict[str, Any] = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
        self.runner = open_runner(graphs, self.model["parts"])


class Through:
    """A runner whose outputs pass through a function first."""

    def __init__(self, runner: Any, change: Any) -> None:
        self.runner, self.change, self.calls = runner, change, 0

    def run(self, part: str, inputs: Any, constant: Mapping[str, Any] = {}) -> Any:
        outputs = self.runner.run(part, inputs, constant)
        if part == "encoder":
            self.calls += 1
            return self.change(self.calls - 1, dict(outputs))
        return outputs


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The shipped model, of the first generation."""
    return Exported(NANO, tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of the second generation's contract."""
    folder = tmp_path_factory.mktemp("second")
    return Exported(write_checkpoint(folder / "checkpoint"), folder / "graphs")


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    """The shipped evaluation clips."""
    return load_speech(NANO / "evaluation.jsonl")
