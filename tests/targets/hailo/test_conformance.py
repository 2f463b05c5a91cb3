"""Hailo's own target through the conformance suite, with the doubles in place of its SDK."""

from pathlib import Path
from typing import Any

from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.toolchains.environment import Toolchain
from tests.conformance import conftest, rules
from tests.conformance.subjects import subject

toys, heard = conftest.toys, conftest.heard  # fixtures of the suite


def test_the_adapter_keeps_the_rules(
    sdk: Toolchain, toys: conftest.Toys, heard: list[dict[str, Any]], tmp_path: Path
) -> None:
    hailo = subject("hailo")
    graphs = toys.graphs(hailo.module.recipe("whisper"))
    hailo.module.compile(graphs, None, hailo.module.Options(), tmp_path / "out")
    rules.binary(hailo, graphs, tmp_path / "out")
    rules.honesty(hailo, tmp_path / "out")
    board = board_of(plugin("targets", "hailo"), None)
    assert board.tier == "vendor-simulator"
    found = toys.hear(board.connect(), tmp_path / "out", tmp_path / "work", heard)  # type: ignore[arg-type]
    rules.equality(found, heard)
