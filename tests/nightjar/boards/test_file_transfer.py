"""Files to and from a board behind a real sshd: resumed, checked, never outside its scratch folder."""

import os
import sys
import time
from pathlib import Path

import pytest

from nightjar.boards.config import find_board
from nightjar.boards.ssh import SshBoard
from nightjar.errors import SessionFailed
from tests.loopback import Loopback
from tests.nightjar.conftest import one_line

HOSTILE = ("two words", "quote'\"", "line\nbreak", ";$(touch x)`id`", "été 中文", "-rf", "%h*?[a]\\")
SOURCES = Path(__file__).resolve().parents[3]


def cached(loop: Loopback) -> list[Path]:
    return sorted((loop.scratch / "cache").iterdir())


# files


def test_hostile_names_travel_both_ways(board: SshBoard, loop: Loopback, tmp_path: Path) -> None:
    for name in HOSTILE:
        (tmp_path / name).write_bytes(name.encode())
    board.put_all([(tmp_path / name, Path("jobs") / name / name) for name in HOSTILE])
    board.get_all([(Path("jobs") / name / name, tmp_path / "back" / name) for name in HOSTILE])
    for name in HOSTILE:
        assert (loop.scratch / "jobs" / name / name).read_bytes() == name.encode()
        assert (tmp_path / "back" / name).read_bytes() == name.encode()
        assert board.run([sys.executable, "-c", "import sys; print(ascii(sys.argv[1]))", name], 20).stdout == (
            f"{name!a}\n"
        )
    assert not (loop.scratch / "x").exists()


def test_what_is_there_does_not_travel_again(board: SshBoard, loop: Loopback, big: Path) -> None:
    board.put_all([(big, Path("jobs/a/one"))])
    assert board.moved_bytes == big.stat().st_size
    board.put_all([(big, Path("jobs/b/two")), (big, Path("jobs/b/three"))])
    assert board.moved_bytes == big.stat().st_size
    assert (loop.scratch / "jobs/b/three").read_bytes() == big.read_bytes()


def test_a_file_that_comes_twice_travels_once(board: SshBoard, loop: Loopback, big: Path) -> None:
    board.put_all([(big, Path("jobs/a/one")), (big, Path("jobs/a/two"))])
    assert board.moved_bytes == big.stat().st_size
    assert (loop.scratch / "jobs/a/two").read_bytes() == big.read_bytes()


def test_a_damaged_byte_on_the_board_is_noticed(board: SshBoard, loop: Loopback, big: Path) -> None:
    board.put_all([(big, Path("jobs/a/file"))])
    (kept,) = cached(loop)
    with kept.open("r+b") as file:
        file.seek(1_500_000)
        byte = file.read(1)
        file.seek(1_500_000)
        file.write(bytes([byte[0] ^ 1]))
    board.put_all([(big, Path("jobs/b/file"))])
    assert board.moved_bytes == 2 * big.stat().st_size
    assert (loop.scratch / "jobs/b/file").read_bytes() == big.read_bytes()


def test_a_byte_that_changes_on_the_way_is_noticed(
    board: SshBoard, loop: Loopback, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with board._file_link() as link:
        send = link.send_frame
    with monkeypatch.context() as patch:
        patch.setattr(
            link, "send_frame", lambda kind, data=b"": send(kind, data[:-1] + b"\0" if kind == b"D" and data else data)
        )
        with pytest.raises(SessionFailed, match="arrived damaged") as failed:
            board.put_all([(big, Path("jobs/a/file"))])
    one_line(failed.value)
    assert cached(loop) == []
    assert not (loop.scratch / "jobs/a/file").exists()
    board.put_all([(big, Path("jobs/a/file"))])
    assert (loop.scratch / "jobs/a/file").read_bytes() == big.read_bytes()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_put_goes_on_in_the_middle(loop: Loopback, big: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from nightjar.boards import file_transfer as transfer

    monkeypatch.setattr(transfer, "CHUNK", 1 << 16)
    with SshBoard(find_board("loop")) as board:
        with board._file_link() as link:
            send, sent = link.send_frame, 0

        def breaking(kind: bytes, payload: bytes = b"") -> None:
            nonlocal sent
            sent += len(payload) if kind == b"D" else 0
            if sent > 1_000_000:
                time.sleep(0.5)  # so that what was sent has arrived
                link.close()
            send(kind, payload)

        monkeypatch.setattr(link, "send_frame", breaking)
        with pytest.raises(SessionFailed, match="connection to board loop was lost"):
            board.put_all([(big, Path("jobs/a/file"))])
    (part,) = cached(loop)
    had = part.stat().st_size
    assert 500_000 < had < 1_100_000
    assert not (loop.scratch / "jobs/a/file").exists(), "half a file has its name"
    if damaged:
        part.write_bytes(b"x" + part.read_bytes()[1:])
    with SshBoard(find_board("loop")) as board:
        board.put_all([(big, Path("jobs/a/file"))])
        assert board.moved_bytes == big.stat().st_size - (0 if damaged else had)
    assert (loop.scratch / "jobs/a/file").read_bytes() == big.read_bytes()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_get_goes_on_in_the_middle(board: SshBoard, loop: Loopback, big: Path, tmp_path: Path, damaged: bool) -> None:
    (loop.scratch / "jobs").mkdir(parents=True)
    (loop.scratch / "jobs/file").write_bytes(big.read_bytes())
    (tmp_path / "back.part").write_bytes((b"xxxxx" if damaged else b"") + big.read_bytes()[5 * damaged : 2_000_000])
    board.get_all([(Path("jobs/file"), tmp_path / "back")])
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert board.moved_bytes == big.stat().st_size - (0 if damaged else 2_000_000)


def test_the_least_recently_used_goes_first(loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = loop.boards(tmp_path / "small.toml", more="cache_gib = 0.0025\n")  # 2.7 MB
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(limit))
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(os.urandom(1_000_000))
    with SshBoard(find_board("loop")) as board:
        for file in (files[0], files[1], files[0], files[2]):  # a is used again, so b goes
            board.put_all([(file, Path("jobs") / file.name)])
            time.sleep(0.02)
        assert board.moved_bytes == 3_000_000
        board.put_all([(files[0], Path("jobs/a2"))])
        assert board.moved_bytes == 3_000_000
        board.put_all([(files[1], Path("jobs/b2"))])
        assert board.moved_bytes == 4_000_000


@pytest.mark.parametrize("path", ["../../climbed", "/tmp/climbed-nightjar", "jobs/../../climbed", "jobs/.."])
def test_nothing_climbs_out_of_the_scratch_folder(board: SshBoard, loop: Loopback, big: Path, path: str) -> None:
    with pytest.raises(SessionFailed, match="is outside of"):
        board.put_all([(big, Path(path))])
    with pytest.raises(SessionFailed, match="is outside of"):
        board.remove_job(Path(path)) if path != "jobs/." else board.remove_job(Path())
    assert not Path("/tmp/climbed-nightjar").exists()
    assert not (loop.scratch.parent / "climbed").exists()
