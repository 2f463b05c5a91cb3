"""Releases on a board: one link that is the old release or the new one, whatever is killed, and whatever lies there."""

import ast
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nightjar.device import program_runner, releases, transcribe
from nightjar.files import digest_file

IDS = [letter * 16 for letter in "abcdef"]


def make(root: Path, name: str) -> None:
    folder = root / "one" / "releases" / name
    folder.mkdir(parents=True)
    (folder / "part").write_text(name)
    manifest = {"id": name, "files": {"part": [16, digest_file(folder / "part")]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def ask(root: Path, do: str, **more: Any) -> dict[str, Any]:
    return releases.answer({"deployed": str(root), "name": "one", "do": do, **more})


def switched(root: Path, *names: str, keep: int = 9) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name in names:
        if not (root / "one" / "releases" / name).exists():
            make(root, name)
        said = ask(root, "switch", id=name, keep=keep)
    return said


def test_back_and_back_until_there_is_nothing(tmp_path: Path) -> None:
    a, b, c, *_ = IDS
    assert switched(tmp_path, a, b, a, c)["history"] == [a, b, a, c]
    assert str((tmp_path / "one" / "current").readlink()) == f"releases/{c}"
    assert [ask(tmp_path, "back")["current"] for _ in range(3)] == [a, b, a]
    with pytest.raises(releases.Refused, match="no release before"):
        ask(tmp_path, "back")
    assert switched(tmp_path, b)["history"] == [a, b]
    assert switched(tmp_path, b)["history"] == [a, b], "the same again is no switch"


def test_back_to_one_that_was_asked_for(tmp_path: Path) -> None:
    a, b, c, d, *_ = IDS
    switched(tmp_path, a, b, c)
    with pytest.raises(releases.Refused, match="never current"):
        ask(tmp_path, "back", id=d)
    assert ask(tmp_path, "back", id=a)["history"] == [a]


def test_so_many_are_kept_and_the_current_one_always(tmp_path: Path) -> None:
    said = switched(tmp_path, *IDS[:5], keep=2)
    assert said["history"] == IDS[3:5]
    assert sorted(path.name for path in (tmp_path / "one" / "releases").iterdir()) == IDS[3:5]
    assert switched(tmp_path, IDS[5], keep=1)["history"] == [IDS[5]]


def test_a_damaged_release_is_not_gone_back_to(tmp_path: Path) -> None:
    a, b, *_ = IDS
    switched(tmp_path, a, b)
    (tmp_path / "one" / "releases" / a / "part").write_text("b" * 16)
    with pytest.raises(releases.Refused, match="part is not what was sent"):
        ask(tmp_path, "back")
    with pytest.raises(releases.Refused, match="damaged"):
        ask(tmp_path, "switch", id=a, keep=3)
    assert ask(tmp_path, "begin", id=a)["current"] == b


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-rf", "$(touch x)", "a\nb", "é", "x" * 65])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(releases.Refused, match="not a valid deployment name"):
        releases.answer({"deployed": str(tmp_path), "name": name, "do": "begin", "id": IDS[0]})
    with pytest.raises(releases.Refused, match=r"is not a valid (release|deployment)"):
        releases.answer({"deployed": str(tmp_path), "name": "one", "do": "back", "id": name or "."})
    assert not list(tmp_path.iterdir())


def test_what_else_lies_there_is_left_alone_and_never_current(tmp_path: Path) -> None:
    a, b, *_ = IDS
    switched(tmp_path, a, b)
    root = tmp_path / "one"
    strange = ["$(touch x)", "a\nb", "été", "A" * 16, a + "0"]
    for name in strange:
        (root / "releases" / name).mkdir()
    (tmp_path / "two\n").mkdir()
    assert [release["id"] for release in ask(tmp_path, "list")["deployments"]["one"]["releases"]] == [b, a]
    assert list(ask(tmp_path, "list")["deployments"]) == ["one"]
    ask(tmp_path, "begin", id=a)
    assert {path.name for path in (root / "releases").iterdir()} == {a, b, *strange}
    for target in ("/etc", "../one/releases/" + a, "releases/..", "releases/" + "A" * 16):
        (root / "current").unlink()
        (root / "current").symlink_to(target)
        assert ask(tmp_path, "begin", id=a)["current"] == ""
    for text in ("", "[", "{}", "[1, {}]", '[{"id": "..", "time_s": 1}]', "[" * 100_000):
        (root / "history.json").write_text(text)
        assert ask(tmp_path, "list")["deployments"]["one"]["history"] == []


def test_a_manifest_that_points_outside_is_damaged(tmp_path: Path) -> None:
    make(tmp_path, IDS[0])
    manifest = tmp_path / "one" / "releases" / IDS[0] / "manifest.json"
    for path in ("/etc/passwd", "../../../x"):
        manifest.write_text(json.dumps({"id": IDS[0], "files": {path: [1, "0"]}}))
        assert "outside" in ask(tmp_path, "check", id=IDS[0])["wrong"]
    manifest.write_text("[]")
    assert "no manifest" in ask(tmp_path, "check", id=IDS[0])["wrong"]


def test_what_was_never_current_goes_before_the_next_upload(tmp_path: Path) -> None:
    a, b, c, *_ = IDS
    switched(tmp_path, a)
    make(tmp_path, b)
    make(tmp_path, c)
    ask(tmp_path, "begin", id=c)
    assert sorted(path.name for path in (tmp_path / "one" / "releases").iterdir()) == [a, c]
    ask(tmp_path, "drop", id=a)  # it is current: a failed canary of the same release takes nothing away
    assert sorted(path.name for path in (tmp_path / "one" / "releases").iterdir()) == [a, c]


def test_sigkill_at_any_moment_leaves_the_old_release_or_the_new_one(tmp_path: Path) -> None:
    a, b, *_ = IDS
    switched(tmp_path, a)
    make(tmp_path, b)
    chance, seen = random.Random(20261120), set()
    asked = {"deployed": str(tmp_path), "name": "one", "id": b, "keep": 9}
    for turn in range(24):
        do = "switch" if turn % 2 == 0 else "back"
        before = str((tmp_path / "one" / "current").readlink())
        words = json.dumps({**asked, "do": do, "id": b if do == "switch" else ""})
        command = [sys.executable, "-I", "-S", releases.__file__, words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.02, 0.09))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = str((tmp_path / "one" / "current").readlink())
        said = ask(tmp_path, "list")["deployments"]["one"]
        seen.add((before == now, do))
        assert said["history"] in ([a], [a, b])
        assert said["history"][-1] == said["current"] == now.rpartition("/")[2]
        if do == "switch" and now.endswith(a):
            ask(tmp_path, "switch", id=b, keep=9)
        elif do == "back" and now.endswith(b):
            ask(tmp_path, "back")
    assert len(seen) > 1, "every kill came at the same moment"


@pytest.mark.parametrize("module", [releases, program_runner, transcribe])
def test_what_runs_on_boards_is_python_3_8_and_the_standard_library(module: Any) -> None:
    source = Path(module.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top for alias in node.names if isinstance(node, ast.Import)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert "from __future__ import annotations" in source
