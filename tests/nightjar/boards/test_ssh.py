"""A board behind a real sshd: who it is, what runs there, and what a hostile one can say."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import cast

import paramiko
import pytest

from nightjar.boards.agent_link import pack_agent
from nightjar.boards.config import STRICT_OPTIONS, find_board, read_boards, ssh_settings
from nightjar.boards.lock import wait_for_lock
from nightjar.boards.ssh import SshBoard
from nightjar.boards.ssh_connection import ChannelStream
from nightjar.device.framing import READY
from nightjar.errors import BadOptions, BoardMissing, SessionFailed
from tests.loopback import Loopback
from tests.nightjar.conftest import one_line

SOURCES = Path(__file__).resolve().parents[3]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 10) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def written(path: Path) -> str:
    """Wait for a file that another process writes."""
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, f"nobody wrote {path}"
        time.sleep(0.05)
    return path.read_text()


# a board that is not ours


def framed(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "big") + payload


HELLO = framed(b"J", b'{"scratch": "/x"}')


# the way in


@pytest.mark.parametrize(
    ("known", "said"),
    [("nobody", "is not known: add it with `ssh-keyscan -p"), ("other", "has changed: .* `ssh-keygen -R '?\\[127")],
)
def test_host_keys_are_checked_and_never_written(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, said: str
) -> None:
    hosts = loop.known("other", "known_other") if known == "other" else tmp_path / "none"
    before = hosts.read_bytes() if hosts.exists() else None
    config = loop.configure(tmp_path / "config", known=hosts)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "b.toml", config=config)))
    with pytest.raises(BoardMissing, match=said) as refused:
        SshBoard(find_board("loop")).status(())
    one_line(refused.value)
    # the other way in, by itself
    with pytest.MonkeyPatch.context() as patch, SshBoard(find_board("loop")) as board:
        patch.setattr("nightjar.boards.ssh.connect", lambda reach: None)
        with pytest.raises(BoardMissing, match="Host key verification failed"):
            board.put_all([(loop.folder / "log", Path("jobs/log"))])
    assert (hosts.read_bytes() if hosts.exists() else None) == before
    assert not loop.scratch.exists()


def test_who_is_not_there_or_lets_nobody_in_is_told_apart(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config, said in (
        (loop.configure(tmp_path / "c1", port=1), "does not answer at 127.0.0.1 port 1"),
        (loop.configure(tmp_path / "c2", key="stranger"), "refuses the key of"),
    ):
        monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "b.toml", config=config)))
        with pytest.raises(BoardMissing, match=said) as refused:
            SshBoard(find_board("loop")).status(())
        one_line(refused.value)
    with pytest.raises(BoardMissing, match=r"no board 'no-such-board\.invalid'"):
        SshBoard(find_board("no-such-board.invalid")).status(())


def test_a_board_of_the_environment(loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BoardMissing, match="set BOARD_IP at least"):
        find_board("env")
    monkeypatch.setenv("BOARD_IP", "127.0.0.1")
    monkeypatch.setenv("BOARD_USER", "somebody")
    monkeypatch.setenv("BOARD_SSH_KEY", str(loop.folder / "user"))
    way = ssh_settings(find_board("env"))
    assert (way.host, way.user, way.keys) == ("127.0.0.1", "somebody", (str(loop.folder / "user"),))
    monkeypatch.setenv("BOARD_IP", "-oProxyCommand=touch x")
    with pytest.raises(BadOptions, match="is not a name or address"):
        find_board("env")


def test_jump_hosts_are_taken_by_both_ways(loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loop.configure(tmp_path / "config")
    config.write_text(config.read_text().replace("Host loop", "Host hop") + "Host loop\n  ProxyJump hop\n")
    config.write_text(config.read_text() + "Include " + str(loop.configure(tmp_path / "included")) + "\n")
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "b.toml", config=config)))
    (tmp_path / "file").write_text("over two hops")
    with SshBoard(find_board("loop")) as board:
        assert "-W" in ssh_settings(find_board("loop")).proxy
        assert board.run(["echo", "here"], 20).stdout == "here\n"
        board.put_all([(tmp_path / "file", Path("jobs/file"))])
    assert (loop.scratch / "jobs/file").read_text() == "over two hops"
    assert "StrictHostKeyChecking=yes" in STRICT_OPTIONS


@pytest.mark.parametrize(
    "text",
    [
        "[rk1]\npassword = 'secret'",
        "[rk1]\nscratch = '../up'",
        "[rk1]\nscratch = '/'",
        "[rk1]\npython = '-c evil'",
        "[rk1]\ncache_gib = '8'",
        "[rk1]\ncache_gib = -1",
        "[local]\nnotes = 'mine'",
        "['-oProxyCommand=x']\nnotes = ''",
        "rk1 = 3",
        "[rk1",
        "x = " + "[" * 5000,
        "\ud800",
    ],
)
def test_a_wrong_boards_toml_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "boards.toml").write_text(text, errors="surrogatepass")
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(tmp_path / "boards.toml"))
    with pytest.raises(BadOptions) as refused:
        read_boards()
    assert "boards.toml" in one_line(refused.value)


# commands


def test_lines_come_as_they_are_written(board: SshBoard) -> None:
    code = "import time; print('one', flush=True); time.sleep(1.5); print('two')"
    seen = {line: time.monotonic() for line in board.stream([sys.executable, "-c", code], 20, print)}
    assert list(seen) == ["one", "two"]
    assert seen["two"] - seen["one"] > 1


def test_a_hung_session_is_ended_with_all_its_processes(board: SshBoard, tmp_path: Path) -> None:
    code = "echo $$ > $0; sleep 300 & echo $! >> $0; echo on; wait"
    started = time.monotonic()
    with pytest.raises(SessionFailed, match="printed nothing for 1 s"):
        list(board.stream(["sh", "-c", code, str(tmp_path / "pids")], 1.0, print))
    assert time.monotonic() - started < 20
    assert all(gone(int(pid), 2) for pid in (tmp_path / "pids").read_text().split())


def test_a_failed_session_says_its_last_word(board: SshBoard) -> None:
    heard: list[str] = []
    with pytest.raises(SessionFailed, match="ended early: no NPU here; ") as failed:
        list(board.stream(["sh", "-c", "echo first >&2; echo no NPU here >&2; exit 3"], 20, heard.append))
    one_line(failed.value)
    assert heard == ["first", "no NPU here"]


def test_a_killed_host_leaves_nothing_running_on_the_board(loop: Loopback, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom nightjar.boards.config import find_board\nfrom nightjar.boards.ssh import SshBoard\n"
        "with SshBoard(find_board('loop')) as board:\n"
        "    list(board.stream(['sh', '-c', 'sleep 300 & echo $$ $! > $0; wait', sys.argv[1]], 300, print))\n"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pids")], env={**os.environ, "PYTHONPATH": str(SOURCES)}
    )
    pids = [int(pid) for pid in written(tmp_path / "pids").split()]
    assert all(map(alive, pids))
    host.send_signal(signal.SIGKILL)
    host.wait()
    assert all(map(gone, pids))


def test_a_host_that_falls_silent_is_taken_for_dead(
    board: SshBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = pack_agent().replace(b"LOST_S = 60", b"LOST_S = 2")  # our next sign of life is due in ten seconds
    monkeypatch.setattr("nightjar.boards.agent_link.pack_agent", lambda: hasty)
    with pytest.raises(SessionFailed, match="connection to board loop was lost"):
        list(board.stream(["sh", "-c", "sleep 300 & echo $$ $! > $0; wait", str(tmp_path / "pids")], 30, print))
    assert all(gone(int(pid)) for pid in written(tmp_path / "pids").split())


@pytest.mark.parametrize("code", ["yes", "head -c 1000000000 /dev/zero", "yes >&2"])
def test_endless_output_is_cut_off(board: SshBoard, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    for name, limit in (("OUTPUT", 1_000_000), ("STDERR", 1_000_000), ("LINE", 700_000)):
        monkeypatch.setattr(f"nightjar.boards.board.{name}_BYTES", limit)
    with pytest.raises(SessionFailed, match="printed more than any session does"):
        for _ in board.stream(["sh", "-c", code], 20, lambda text: None):
            pass
    with pytest.raises(SessionFailed, match="printed more than any session does"):
        board.run(["sh", "-c", code], 20)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b"J\xff\xff\xff\xff"], "an invalid frame from board loop"),
        ([framed(b"?", b"")], "an invalid frame from board loop"),
        ([framed(b"J", b'{"')], "an invalid answer from board loop"),
        ([framed(b"J", b"[" * 65536)], "an invalid answer from board loop"),
        ([framed(b"J", b"[1]")], "an invalid answer from board loop"),
        ([HELLO, framed(b"J", b'{"size": -5, "offset": 0}')], "sends a file of -5 bytes"),
        ([HELLO, framed(b"J", b'{"size": 9999999, "offset": 0}')], "sends a file of 9999999"),
        ([HELLO, framed(b"J", b'{"size": 5, "offset": 5}')], "sends a file of 5 bytes"),
        ([HELLO, framed(b"J", b'{"size": "5", "offset": 0}')], "invalid answer about files"),
        ([HELLO, framed(b"J", b'{"size": 5, "offset": 0}'), framed(b"D", b"longer")], "invalid answer about files"),
        (
            [HELLO, framed(b"J", b'{"size": 1, "offset": 0}'), framed(b"D", b"a"), framed(b"J", b"{}")],
            "arrived damaged",
        ),
        ([], "was lost"),
    ],
)
def test_a_hostile_board_is_refused(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[bytes], said: str
) -> None:
    fake = tmp_path / "fake"
    data = READY + b"".join(answers)
    fake.write_text(f"#!{sys.executable}\nimport os, time\nos.write(1, {data!r})\ntime.sleep({1 if answers else 0})\n")
    fake.chmod(0o755)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "b.toml", python=str(fake))))
    with SshBoard(find_board("loop")) as board, pytest.raises(SessionFailed, match=said) as refused:
        board.get_all([(Path("jobs/file"), tmp_path / "back")], limit_bytes=1000)
    one_line(refused.value)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true", "/usr/bin/yes"])
def test_a_board_without_python_is_told(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "b.toml", python=python)))
    with pytest.raises(BoardMissing, match=f"does not run {python}") as refused:
        SshBoard(find_board("loop")).status(())
    one_line(refused.value)


# the lock


def test_who_waits_is_told_who_holds_the_board_and_gets_it_when_he_dies(loop: Loopback, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom nightjar.boards.config import find_board\nfrom nightjar.boards.ssh import SshBoard\n"
        "with SshBoard(find_board('loop')).locked():\n    open(sys.argv[1], 'w').write('held\\n')\n"
        "    time.sleep(300)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "held")], env={**os.environ, "PYTHONPATH": str(SOURCES)}
    )
    written(tmp_path / "held")
    assert f"process {holder.pid}, since 20" in SshBoard(find_board("loop")).status(()).holder
    told: list[str] = []
    with SshBoard(find_board("loop")) as board, board._agent(serve="lease", lock=board.entry.lock, holder="us") as link:
        waiting = threading.Thread(target=wait_for_lock, args=(link, told.append), daemon=True)
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        waiting.join(15)
        assert not waiting.is_alive()
    (line,) = told
    assert line.startswith("board loop is locked by ")
    assert f"process {holder.pid}, since 20" in line
    assert SshBoard(find_board("loop")).status(()).holder == ""


@pytest.mark.parametrize("error", [EOFError(), paramiko.SSHException("SSH session not active"), ConnectionResetError()])
def test_a_transport_that_ended_is_a_lost_connection_however_paramiko_says_it(error: Exception) -> None:
    class Ended:
        def send(self, data: bytes) -> int:
            raise error

    with pytest.raises(OSError):  # noqa: PT011  # which AgentLink turns into its one line
        ChannelStream(cast("paramiko.Channel", Ended())).send(b"K")
