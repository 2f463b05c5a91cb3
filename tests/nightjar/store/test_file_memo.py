"""What is remembered of files: nothing that anybody touched since."""

import json
import os
from pathlib import Path

import pytest

from nightjar.store import file_memo as memo
from nightjar.store.file_memo import FileMemo


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "SETTLED_NS", 0)
    path = tmp_path / "a.txt"
    path.write_text("one")
    return path


READS: list[str] = []


def read(path: Path) -> str:
    READS.append(path.name)
    return path.read_text()


@pytest.fixture(autouse=True)
def forgotten() -> None:
    READS.clear()


def test_a_file_is_read_once_and_by_another_process_not_at_all(file: Path) -> None:
    first = FileMemo("texts", read)
    assert [first.get(file), first.get(file)] == ["one", "one"]
    first.save()
    assert FileMemo("texts", read).get(file) == "one"
    assert READS == ["a.txt"]


def test_a_changed_byte_is_seen_though_size_and_mtime_are_as_before(file: Path) -> None:
    kept, stat = FileMemo("texts", read), file.stat()
    kept.get(file)
    kept.save()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [kept.get(file), FileMemo("texts", read).get(file)] == ["two", "two"]


def test_what_changed_a_moment_ago_is_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SETTLED_NS", 60_000_000_000)
    kept = FileMemo("texts", read)
    kept.get(file)
    kept.get(file)
    assert READS == ["a.txt", "a.txt"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1'])
def test_a_damaged_memo_is_made_again(file: Path, content: str) -> None:
    first = FileMemo("texts", read)
    first.get(file)
    first.save()
    assert first.path is not None
    assert list(json.loads(first.path.read_text())) == [str(file)]
    first.path.write_text(content)
    assert FileMemo("texts", read).get(file) == "one"
    assert READS == ["a.txt", "a.txt"]


def test_a_store_that_cannot_be_written_and_a_file_that_is_gone_stop_nobody(file: Path) -> None:
    (file.parent / "store").write_text("no folder")
    kept = FileMemo("texts", read)
    assert kept.get(file) == "one"
    kept.save()
    file.unlink()
    with pytest.raises(FileNotFoundError):
        kept.get(file)
