"""Harvests that boards share, that pause, crash, hang, lose a board, or come back after the clock has jumped."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.boards.board import BoardFacts, LocalBoard
from nightjar.boards.config import find_board
from nightjar.boards.ref import BoardRef
from nightjar.boards.ssh import SshBoard
from nightjar.device.file_cache import STALE_S, FileCache
from nightjar.errors import BadOptions, BoardBusy, NightjarError, RunnerFailed, SessionFailed
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.sessions import run as job
from tests.conftest import need
from tests.faults import Bench
from tests.loopback import SSHD, Loopback


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    need("sshd", SSHD is not None and shutil.which("ssh") is not None, "apt install openssh-server openssh-client")
    (tmp_path / "sshd").mkdir()
    loop = Loopback(tmp_path / "sshd")
    made = Bench(tmp_path, 40, loop)
    made.fresh()
    # a second board: another scratch folder and another lock, behind the same sshd and not through the proxy
    config = loop.configure(tmp_path / "direct")
    config.write_text(config.read_text().replace("Host loop", "Host other"))
    table = made.boards.read_text().replace("[loop]", "[other]").replace(f"{loop.folder}/lock", f"{loop.folder}/lock2")
    table = table.replace("board disk/scratch", "board disk/other").replace(str(tmp_path / "config"), str(config))
    made.boards.write_text(made.boards.read_text() + table)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(made.boards))
    yield made
    made.close()
    loop.stop()


def harvest(bench: Bench, *aliases: str, **settings: Any) -> tuple[list[dict[str, Any]], list[SshBoard]]:
    boards = [SshBoard(find_board(alias)) for alias in aliases]
    for board in boards:
        board.runners = {"fake": "fakerunner"}
    waves = {name: np.load(bench.folder / "clips" / f"{name}.npy") for name in bench.expected}
    lines = job.run_session(
        boards, bench.binary, [], bench.work, decode=False, harvest=["hidden"], waves=waves, **settings
    )
    (bench.folder / "lines.json").write_text(json.dumps(lines))
    return lines, boards


def one_line(error: NightjarError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_two_boards_share_the_clips_and_neither_does_anothers(bench: Bench) -> None:
    bench.plan(sleep=0.05)
    harvest(bench, "loop", "other")
    bench.check(set())
    assert set(bench.begun().values()) == {1}
    for scratch in ("scratch é'; $(x)", "other é'; $(x)"):
        cache = bench.disk["board"] / scratch / "cache"
        assert len(list(cache.iterdir())) > 10, "a board did nothing"
        assert not list((bench.disk["board"] / scratch / "jobs").iterdir())


def test_a_board_that_dies_gives_its_clips_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.plan(sleep=0.05)
    monkeypatch.setattr(SshBoard, "reconnect_s", 0.5)
    fetch = SshBoard.get_all
    count = 0

    def dying(self: SshBoard, *given: Any) -> None:
        nonlocal count
        count += self.alias == "loop"
        if count == 3:
            bench.proxy.stop()  # for good
        fetch(self, *given)

    monkeypatch.setattr(SshBoard, "get_all", dying)
    lines, _ = harvest(bench, "loop", "other")
    assert [line["id"] for line in lines] == list(bench.expected)
    assert not [line for line in lines if "error" in line]


def test_all_boards_dead_is_one_line_and_nothing_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SshBoard, "reconnect_s", 0.5)
    fetch = SshBoard.get_all

    def dying(self: SshBoard, *given: Any) -> None:
        if len(bench.finished()) >= 5:
            bench.loop.kill_sessions()
            bench.loop.stop()
        fetch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(SshBoard, "get_all", dying)
        with pytest.raises(NightjarError) as failed:
            harvest(bench, "loop", "other")
    assert "does not answer" in one_line(failed.value) or "was lost" in one_line(failed.value)
    known = bench.finished()
    assert 5 <= len(known) < 40
    before = bench.begun()
    bench.loop.start()
    harvest(bench, "loop", "other")
    bench.check(set())
    assert all(bench.begun()[bench.marks[name]] == before[bench.marks[name]] for name in known)


def test_a_second_harvest_moves_next_to_nothing(bench: Bench) -> None:
    _, (first,) = harvest(bench, "loop")
    earlier = bench.folder / "earlier"
    shutil.move(bench.work / "harvest", earlier)
    bench.fresh()
    _, (second,) = harvest(bench, "loop", earlier=[earlier])
    bench.check(set())
    assert second.moved_bytes < first.moved_bytes / 100
    assert set(bench.begun().values()) == {1}, "it was to be computed again, and only not to travel"


def test_what_is_fetched_is_deleted_and_a_full_spool_pauses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    each = 2 * 50 * 64 + 128
    bench.boards.write_text(bench.boards.read_text().replace("[other]", f"spool_gib = {3.5 * each / 2**30}\n[other]"))
    fetch, seen = SshBoard.get_all, []

    def slow(self: SshBoard, *given: Any) -> None:
        time.sleep(0.05)
        seen.append(len(list(bench.loop.scratch.glob("jobs/*/harvest/*.npy"))))
        fetch(self, *given)

    monkeypatch.setattr(SshBoard, "get_all", slow)
    harvest(bench, "loop")
    bench.check(set())
    assert max(seen) == 3, "the board went on, or never got ahead of us"


def test_a_crash_and_a_hang_cost_two_clips(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "SILENCE_S", 2.0)
    crashing, hanging = list(bench.expected)[4], list(bench.expected)[20]
    bench.plan(crash=[bench.marks[crashing]], hang=[bench.marks[hanging]])
    lines, _ = harvest(bench, "loop")
    bench.check({crashing, hanging})
    why = {line["id"]: line["error"] for line in lines if "error" in line}
    assert "exit status -11" in why[crashing]
    assert "printed nothing for 2 s" in why[hanging]
    assert {bench.begun()[bench.marks[name]] for name in why} == {2}, "one retry, and no more"


def test_a_board_on_which_everything_crashes_is_no_result(bench: Bench) -> None:
    bench.plan(crash=list(bench.marks.values()))
    with pytest.raises(
        RunnerFailed,
        match="3 of 40 clips failed on board loop, so the board or the binary is at fault, not the clips: ",
    ) as failed:
        harvest(bench, "loop")
    one_line(failed.value)
    bench.plan()  # mended
    harvest(bench, "loop")
    bench.check(set())


def test_a_result_altered_on_the_board_is_not_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, flipped = SshBoard.get_all, []

    def altered(self: SshBoard, pairs: Any, limit: int) -> None:
        if len(bench.finished()) == 7 and not flipped:
            path = Path(pairs[0][0])
            path.write_bytes(path.read_bytes()[:-1] + b"\x55")
            flipped.append(path)
        fetch(self, pairs, limit)

    monkeypatch.setattr(SshBoard, "get_all", altered)
    harvest(bench, "loop")
    assert flipped
    bench.check(set())


def test_a_clip_of_the_same_name_is_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SshBoard, "remove_job", lambda self, folder: None)
    harvest(bench, "loop")
    bench.fresh()
    name = next(iter(bench.expected))
    np.save(bench.folder / "clips" / f"{name}.npy", np.ones(3200, np.int16))
    harvest(bench, "loop")
    hidden = np.load(bench.work / "harvest" / f"{name}.hidden.npy")
    assert hidden.tobytes() != bench.expected[name], "the earlier clip's result was taken"


def test_a_clock_that_jumped_deletes_no_unfinished_job(tmp_path: Path) -> None:
    files = FileCache(tmp_path, 1 << 30)
    for name, age in (("ours", 0), ("old", time.time() - STALE_S - 60), ("young", time.time())):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        os.utime(tmp_path / "jobs" / name, (age, age))
    # written in 1970, before the board knew the time; the connection opens, and the job is gone on with
    assert (tmp_path / "jobs" / "ours").exists()
    files.remove_folder("jobs/ours")
    files.remove_stale()
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["young"]


def test_opening_the_way_for_files_deletes_nothing(bench: Bench) -> None:
    job_folder = bench.loop.scratch / "jobs" / "ours"
    job_folder.mkdir(parents=True)
    os.utime(job_folder, (0, 0))
    with SshBoard(find_board("loop")) as board:
        board.put_all([(bench.boards, Path("jobs/new/file"))])
    assert job_folder.exists()


def test_boards_of_two_kinds_are_refused_in_one_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    target = plugin("targets", "onnx")
    assert board_of(target, "loop,other").alias == "loop,other"
    with pytest.raises(BadOptions, match="names a board twice"):
        board_of(target, "loop,loop")
    bench.proxy.stop()
    assert board_of(target, "loop,other").alias == "other", "who does not answer is left out"
    facts = SshBoard.facts

    def differing(self: SshBoard, *given: Any) -> BoardFacts:
        found = facts(self, *given)
        return found.model_copy(update={"runtimes": {**found.runtimes, "numpy": "1.0"}})

    with monkeypatch.context() as patch:
        patch.setattr(SshBoard, "facts", differing)
        patch.setattr("nightjar.plugins.board_choice._remote", lambda target, alias: BoardRef(
            alias=alias, tier="host", remote=True,
            facts=BoardFacts(soc="x", python="3.11.7", runtimes={"numpy": "1.0" if alias == "loop" else "2.0"}),
        ))  # fmt: skip
        with pytest.raises(BadOptions, match=r"loop and other are not of a kind \(numpy 1\.0 and 2\.0\)") as refused:
            board_of(target, "loop,other")
    one_line(refused.value)


def test_waiting_for_a_board_has_an_end(bench: Bench) -> None:
    with SshBoard(find_board("other")).locked():
        began = time.monotonic()
        waiting = SshBoard(find_board("other"))
        with (
            pytest.raises(BoardBusy, match=r"still locked by .*, process \d+, since .* after 1 s") as busy,
            waiting.locked(1),
        ):
            pass
        assert 1 <= time.monotonic() - began < 10
        one_line(busy.value)


def test_a_local_session_that_says_nonsense_is_tried_once(bench: Bench) -> None:
    tries = []

    class Hostile(LocalBoard):
        def stream(self, command: list[str], silence_s: float, log: Any) -> Any:
            tries.append(command)
            yield '{"id": 3}'

    waves = {name: np.load(bench.folder / "clips" / f"{name}.npy") for name in list(bench.expected)[:2]}
    board = Hostile(sys.executable, runners={"fake": "fakerunner"})
    with pytest.raises(SessionFailed, match="invalid result line"):
        job.run_session(board, bench.binary, [], bench.work, decode=False, harvest=["hidden"], waves=waves)
    assert len(tries) == 1
