"""The suite itself: the tutorial's target keeps every rule wherever it lies, and each broken copy breaks one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightjar.boards.board import LocalBoard
from nightjar.files import digest_file
from nightjar.plugins.recipe import Recipe
from nightjar.store.artifact import Source
from tasks.build import build
from tasks.stage import key_parts
from tests.conformance import rules
from tests.conformance.conftest import Toys, inside
from tests.conformance.subjects import Subject, elsewhere
from tests.conformance.test_targets import printed_by

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "example" / "halves"

NO_TABLE = '(out / "token_embedding.npy").unlink()'
LINT = """
from nightjar.plugins.lint import Finding

def lint(graphs):
    import json
    recipe = json.loads((graphs / "model.json").read_text())["recipe"]
    said = dict(part="decoder", node="/token_embedding/Gather", op="Gather", place="token table", why="no look-ups")
    found = [] if recipe["host_embedding"] else [Finding(level="refuse", remedy="host embedding", **said)]
    return found
"""


def whole(subject: Subject, toys: Toys, tmp: Path, heard: list[dict[str, Any]]) -> None:
    """Run everything that the suite runs on a target."""
    own = toys.graphs(subject.module.recipe("whisper"))
    rules.contract(subject)
    rules.options(subject)
    rules.honesty(subject)
    rules.lint(subject, toys.graphs(Recipe()), own)
    compiled(subject, own, tmp)
    rules.binary(subject, own, tmp / "one")
    rules.honesty(subject, tmp / "one")
    subject.module.compile(own, None, subject.module.Options(), tmp / "other")
    rules.same_bytes(tmp / "one", tmp / "other")
    options, model = subject.module.Options(), own / "model.json"
    given = {"graphs": Source(path=model, sha256=digest_file(model)), "calibration": None}
    rules.key(subject, key_parts("build", build.__wrapped__, {**given, "target": subject.plugin, "options": options}))
    equal(subject, toys, tmp, heard)


def compiled(subject: Subject, graphs: Path, tmp: Path) -> None:
    here = tmp / "here"
    here.mkdir()
    with inside(here), printed_by() as printed:
        subject.module.compile(graphs, None, subject.module.Options(), tmp / "one")
    rules.silence(printed[0], here)


def equal(subject: Subject, toys: Toys, tmp: Path, heard: list[dict[str, Any]]) -> None:
    """Hear in a session whose zipapp has the copy's runner where a target's lies."""
    from nightjar.sessions import run as job

    files = {f"targets/{subject.name}/runner.py": (subject.folder / "runner.py").read_bytes()}
    packed = job.pack_session

    def pack_session(modules: Any) -> bytes:
        import io
        import zipfile

        own = f"targets.{subject.name}.runner"
        app = io.BytesIO(packed(["targets.onnx.runner", *(name for name in modules if name != own)]))
        with zipfile.ZipFile(app, "a") as archive:
            for name, data in files.items():
                archive.writestr(f"{name.rpartition('/')[0]}/__init__.py", b"")
                archive.writestr(name, data)
        return app.getvalue()

    job.pack_session = pack_session
    try:
        found = toys.hear(LocalBoard(), tmp / "one", tmp / "work", heard)
    finally:
        job.pack_session = packed
    rules.equality(found, heard)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "halves", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "halves" / "lint.py").write_text(LINT)
    return tmp_path / "halves"


def edit(folder: Path, file: str, *pairs: tuple[str, str]) -> None:
    path = folder / file
    text = path.read_text()
    for old, new in pairs:
        assert old in text, f"the example has no {old!r} to break"
        text = text.replace(old, new)
    path.write_text(text)


def test_the_example_keeps_every_rule(
    copy: Path, toys: Toys, heard: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "key", lambda subject, parts: None)  # it is in targets/ only where one copied it to
    with elsewhere(copy, "halves") as subject:
        whole(subject, toys, tmp_path, heard)


BREAKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another name": (lambda f: edit(f, "__init__.py", ('NAME = "halves"', 'NAME = "other"')), "NAME is the folder's"),
    "an unknown tier": (lambda f: edit(f, "__init__.py", ('{"local": "host"}', '{"local": "fast"}')), ""),
    "no runner": (lambda f: (f / "runner.py").unlink(), "runner.py is what runs a part"),
    "a stand-in's tier": (
        lambda f: edit(f, "__init__.py", ('{"local": "host"}', '{"local": "stand-in"}')),
        "a stand-in is a folder of its own",
    ),
    "options that can change": (lambda f: edit(f, "__init__.py", (", frozen=True", "")), "DID NOT RAISE"),
    "a precision nobody can ask for": (
        lambda f: edit(f, "__init__.py", ('Literal["fp"]', 'Literal["fp", "int3"]')),
        "no command line can ask for",
    ),
    "an option without a description": (
        lambda f: edit(f, "__init__.py", ('description="float16 weights, float32 activations"', 'title="x"')),
        "has no description",
    ),
    "a lint that refuses its own recipe": (
        lambda f: edit(f, "lint.py", ('[] if recipe["host_embedding"] else ', "")),
        "the recipe leaves what the compiler refuses",
    ),
    "a lint without a remedy": (lambda f: edit(f, "lint.py", ('remedy="host embedding"', 'remedy=""')), "remedy=''"),
    "a part left out": (
        lambda f: edit(f, "__init__.py", ("    write_binary(", '    parts.pop("cross")\n    write_binary(')),
        "",
    ),
    "a size that is wrong": (
        lambda f: edit(f, "__init__.py", ('"int8_mac_share": 0.0', '"int8_mac_share": 0.0, "size_bytes": 1')),
        "",
    ),
    "another target's binary": (lambda f: edit(f, "__init__.py", ("target=NAME", 'target="onnx"')), ""),
    "tables left out": (
        lambda f: edit(f, "__init__.py", ("options.precision)\n", f"options.precision)\n    {NO_TABLE}\n")),
        "",
    ),
    "a path in the binary": (
        lambda f: edit(f, "__init__.py", ('"int8_mac_share": 0.0', '"int8_mac_share": 0.0, "at": str(out)')),
        "a path of this machine would be content",
    ),
    "a compile that prints": (
        lambda f: edit(f, "__init__.py", ("    parts = {}\n", '    parts = {}\n    print("working")\n')),
        "stdout is the command line's",
    ),
    "a compile that litters": (
        lambda f: edit(f, "__init__.py", ("    parts = {}\n", '    parts = {}\n    Path("x.log").touch()\n')),
        "",
    ),
    "the time in a file": (
        lambda f: edit(f, "__init__.py", ("target=NAME", 'target=NAME, made=__import__("time").time_ns()')),
        "",
    ),
    "a vendor's file from no vendor": (
        lambda f: edit(f, "__init__.py", ("    write_binary(", '    (out / "encoder.dla").touch()\n    write_binary(')),
        "",
    ),
    "a runner that swaps outputs": (
        lambda f: (f / "runner.py").write_text(
            "from targets.onnx.runner import open_runner as opened\n\n\ndef open_runner(folder, parts, options=None):\n"
            "    runner = opened(folder, parts, options)\n    run = runner.run\n\n"
            "    def swapped(part, inputs, constant={}, **into):\n        out = run(part, inputs, constant, **into)\n"
            "        return dict(zip(out, reversed(list(out.values())))) if part == 'cross' else out\n\n"
            "    runner.run = swapped\n    return runner\n"
        ),
        "",
    ),
    "weights that are wrong": (
        lambda f: edit(f, "__init__.py", ("values.astype(np.float16)", "(values * 1.5).astype(np.float16)")),
        "",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_copy_breaks_a_rule(
    case: str,
    copy: Path,
    toys: Toys,
    heard: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "key", lambda subject, parts: None)
    damage, said = BREAKS[case]
    damage(copy)
    broken = (AssertionError, pytest.fail.Exception, Exception)
    with elsewhere(copy, "halves") as subject, pytest.raises(broken) as caught:
        whole(subject, toys, tmp_path, heard)
    assert not isinstance(caught.value, (ImportError, SyntaxError, NameError, TypeError)), (
        "the copy is broken otherwise"
    )
    assert said in str(caught.value)


def test_a_stand_in_that_writes_a_vendors_file_is_found(copy: Path, toys: Toys, tmp_path: Path) -> None:
    edit(
        copy,
        "__init__.py",
        ('NAME = "halves"', 'NAME = "halves.stand_in"'),
        ('{"local": "host"}', '{"stand-in": "stand-in"}'),
        ('DEFAULT_BOARD = "local"', 'DEFAULT_BOARD = "stand-in"'),
    )
    with elsewhere(copy, "halves") as subject:
        stand_in = subject._replace(name="halves.stand_in")
        rules.contract(stand_in)
        rules.honesty(stand_in)
        own = toys.graphs(subject.module.recipe("whisper"))
        subject.module.compile(own, None, subject.module.Options(), tmp_path / "out")
        rules.honesty(stand_in, tmp_path / "out")
        (tmp_path / "out" / "encoder.hef").touch()
        with pytest.raises(AssertionError):
            rules.honesty(stand_in, tmp_path / "out")


def test_a_key_without_the_targets_code_is_found(toys: Toys, copy: Path) -> None:
    with elsewhere(copy, "halves") as subject:
        good = {"code targets/halves/__init__.py": "1", "options.precision": "fp"}
        rules.key(subject, good)
        for bad in (
            {"options.precision": "fp"},
            {"code targets/halves/__init__.py": "1"},
            {**good, "input": str(Path.cwd() / "x")},
        ):
            with pytest.raises(AssertionError):
                rules.key(subject, bad)
