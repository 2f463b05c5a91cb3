"""Every folder in targets/, and every stand-in, keeps every rule; what needs an absent SDK is skipped by name."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightjar.boards.ref import BoardRef
from nightjar.errors import Missing
from nightjar.files import digest_file
from nightjar.plugins.recipe import Recipe
from nightjar.store.artifact import Source
from tasks.build import build
from tasks.stage import key_parts
from tests.conformance import rules
from tests.conformance.conftest import Toys, board_for, inside
from tests.conformance.subjects import Subject, subject, subjects
from tests.conftest import need

MINUTES = {"mtk", "mtk.stand_in"}  # of conversion


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in MINUTES else []) for name in subjects()],
)
def each(request: pytest.FixtureRequest) -> Subject:
    return subject(request.param)


@pytest.fixture(scope="module")
def board(each: Subject) -> BoardRef:
    """The board that it runs on here, or a named skip."""
    try:
        return board_for(each.name)
    except Missing as error:
        need(each.name, False, str(error))
        raise


@pytest.fixture(scope="module")
def compiled(each: Subject, board: BoardRef, toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Its own graphs and its float binary; the same check holds that the compile is silent."""
    graphs, out, here = (
        toys.graphs(each.module.recipe("whisper")),
        *(tmp_path_factory.mktemp(n) for n in ("out", "here")),
    )
    with inside(here), printed_by() as printed:
        each.module.compile(graphs, None, each.module.Options(), out)
    rules.silence(printed[0], here)
    return graphs, out


@contextlib.contextmanager
def printed_by() -> Iterator[list[str]]:
    """Catch what is printed, by Python or in C; it is in the list when the block has ended."""
    said: list[str] = []
    ours = io.StringIO()
    with tempfile.TemporaryFile("w+") as kept, contextlib.redirect_stdout(ours):
        saved = os.dup(1)
        os.dup2(kept.fileno(), 1)
        try:
            yield said
        finally:
            os.dup2(saved, 1)
            os.close(saved)
            kept.seek(0)
            said.append(ours.getvalue() + kept.read())


def test_contract(each: Subject) -> None:
    rules.contract(each)


def test_options(each: Subject) -> None:
    rules.options(each)


def test_tiers(each: Subject) -> None:
    rules.honesty(each)


def test_lint(each: Subject, toys: Toys) -> None:
    rules.lint(each, toys.graphs(Recipe()), toys.graphs(each.module.recipe("whisper")))


def test_key(each: Subject, board: BoardRef, toys: Toys) -> None:
    model = toys.graphs(Recipe()) / "model.json"
    options = each.module.Options()
    source = Source(path=model, sha256=digest_file(model))
    given = {"graphs": source, "calibration": None, "target": each.plugin, "options": options}
    parts = key_parts("build", build.__wrapped__, given)
    rules.key(each, parts)
    assert parts == key_parts("build", build.__wrapped__, given)
    moved = given | {"graphs": Source(path=Path("/elsewhere/model.json"), sha256=source.sha256)}
    assert parts == key_parts("build", build.__wrapped__, moved), "where a thing lies is no part of a key"


def test_binary(each: Subject, compiled: tuple[Path, Path]) -> None:
    graphs, out = compiled
    rules.binary(each, graphs, out)
    rules.honesty(each, out)


def test_same_bytes(each: Subject, board: BoardRef, toys: Toys, tmp_path: Path) -> None:
    recipe = each.module.recipe("whisper")
    part = "cross" if recipe.decoder == "cached" else "encoder"
    part = getattr(each.module.Options(), "npu", (part,))[0]  # the others are the board's CPU's
    graphs = toys.only(toys.graphs(recipe), part, tmp_path / "graphs")
    if each.name == "onnx":  # opens lanes in a decoder, which these graphs lack
        graphs = toys.graphs(recipe)
    for name in ("one", "other"):
        each.module.compile(graphs, None, each.module.Options(), tmp_path / name)
    rules.same_bytes(tmp_path / "one", tmp_path / "other")


def test_equality(
    each: Subject, board: BoardRef, compiled: tuple[Path, Path], toys: Toys, heard: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = toys.hear(board.connect(), compiled[1], tmp_path / "work", heard)  # type: ignore[arg-type]
    rules.equality(found, heard)
