"""MediaTek's own target through the conformance suite, with the doubles in place of its SDK."""

from pathlib import Path
from typing import Any

import pytest

from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from tests.conformance import conftest, rules
from tests.conformance.subjects import subject
from tests.targets.mtk.conftest import Doubles

pytestmark = pytest.mark.slow

toys, heard = conftest.toys, conftest.heard  # fixtures of the suite


def test_the_adapter_keeps_the_rules(
    doubles: Doubles, toys: conftest.Toys, heard: list[dict[str, Any]], tmp_path: Path
) -> None:
    mtk = subject("mtk")
    graphs = toys.graphs(mtk.module.recipe("whisper"))
    mtk.module.compile(graphs, None, mtk.module.Options(), tmp_path / "out")
    rules.binary(mtk, graphs, tmp_path / "out")
    rules.honesty(mtk, tmp_path / "out")
    board = board_of(plugin("targets", "mtk"), None)
    assert (board.tier, board.facts.runtimes["ncc-tflite"]) == ("vendor-simulator", "8.2.19")
    found = toys.hear(board.connect(), tmp_path / "out", tmp_path / "work", heard)  # type: ignore[arg-type]
    rules.equality(found, heard)
