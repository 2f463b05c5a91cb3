"""The file memo: values are reused only for untouched files."""

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
def clear_reads() -> None:
    READS.clear()


def test_a_file_is_read_once_and_not_again_by_another_process(file: Path) -> None:
    first = FileMemo("texts", read)
    assert [first.get(file), first.get(file)] == ["one", "one"]
    first.save()
    assert FileMemo("texts", read).get(file) == "one"
    assert READS == ["a.txt"]


def test_a_changed_byte_is_detected_although_size_and_mtime_are_restored(file: Path) -> None:
    texts, stat = FileMemo("texts", read), file.stat()
    texts.get(file)
    texts.save()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [texts.get(file), FileMemo("texts", read).get(file)] == ["two", "two"]


def test_a_recently_changed_file_is_not_cached(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SETTLED_NS", 60_000_000_000)
    texts = FileMemo("texts", read)
    texts.get(file)
    texts.get(file)
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


def test_a_store_that_cannot_be_written_and_a_missing_file_stop_no_run(file: Path) -> None:
    (file.parent / "store").write_text("no folder")
    texts = FileMemo("texts", read)
    assert texts.get(file) == "one"
    texts.save()
    file.unlink()
    with pytest.raises(FileNotFoundError):
        texts.get(file)
