"""A vendor's SDK: absent, of another version, broken, and every way in which a call of it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import nightjar.toolchains.environment as module
import nightjar.toolchains.install as making
from nightjar.cli.doctor import examine
from nightjar.cli.main import main
from nightjar.errors import NightjarError, ToolchainBroken, ToolchainFailed, ToolchainMissing, UnknownName
from nightjar.plugins.registry import plugin
from nightjar.process import last_line, run_logged, run_parallel
from nightjar.toolchains.environment import (
    MARKER,
    Toolchain,
    installed_versions,
    override_toolchain,
    pinned_versions,
    toolchain,
)
from nightjar.toolchains.install import install

ROOT = Path(__file__).resolve().parents[3]
WORK = "tests.nightjar.toolchain_work"


@pytest.fixture
def empty(tmp_path: Path) -> Toolchain:
    """An environment with an interpreter and nothing else."""
    python = tmp_path / "toolchains" / "empty" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return Toolchain("empty", python.parent.parent)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of no packages for a target called rknn, whose probe does nothing, in a place of its own."""
    path = tmp_path / "requirements.txt"
    path.write_text("# nothing\n")
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path / "place"))
    for each in (module, making):
        monkeypatch.setattr(each, "requirements_file", lambda target: path)
        monkeypatch.setattr(each, "probe", lambda found: {})
    return path


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _gone(pids: Path) -> bool:
    """Wait until the processes that wrote their ids are there, and then gone."""
    numbers = [int(pid) for pid in pids.read_text().split()]
    for _ in range(100):
        if not any(map(_alive, numbers)):
            return True
        time.sleep(0.05)
    return False


def test_a_call_has_a_folder_of_its_own(empty: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    found = empty.call(WORK, {"do": "echo", "say": "ä"}, tmp_path / "scratch", 30)
    assert found["said"] == "ä"
    assert found["cwd"] == str(tmp_path / "scratch")
    assert found["path"][0] == str(ROOT), "what lies in the scratch folder must not be imported"
    assert list(here.iterdir()) == []
    assert (tmp_path / "scratch" / "litter.txt").is_file()


def test_a_log_has_no_colours_and_bars_become_progress(empty: Toolchain, tmp_path: Path) -> None:
    seen = []
    empty.call(WORK, {"do": "noise"}, tmp_path / "s", 30, on_progress=lambda *bar: seen.append(bar))
    assert seen == [("Quantizating", 0, 3), ("Quantizating", 1, 3), ("Quantizating", 2, 3)]
    assert (tmp_path / "s" / "log.txt").read_text() == "W load: a warning\n"


@pytest.mark.parametrize(
    ("job", "kind", "said"),
    [
        ({"do": "import"}, ToolchainBroken, "does not import: libGL.so.1: cannot open"),
        ({"do": "memory"}, ToolchainFailed, "ran out of memory; log in"),
        ({"do": "bad_alloc"}, ToolchainFailed, "ran out of memory; log in"),
        ({"do": "signal", "signal": "SIGKILL"}, ToolchainFailed, "killed by SIGKILL, usually by the kernel"),
        ({"do": "signal", "signal": "SIGSEGV"}, ToolchainFailed, "was killed by SIGSEGV; log in"),
        ({"do": "refuse"}, ToolchainFailed, "failed: ValueError: Invalid platform; log in"),
        ({"do": "exit"}, ToolchainFailed, "failed: E build: this op is not supported; log in"),
    ],
)
def test_each_way_to_fail_has_its_words(
    empty: Toolchain, tmp_path: Path, job: dict[str, str], kind: type[NightjarError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        empty.call(WORK, job, tmp_path / "s", 60)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert (empty.folder.parent / "logs" / "empty.toolchain_work.txt").is_file()


def test_an_sdk_is_imported_once_for_many_calls_and_again_after_its_process_was_killed(
    empty: Toolchain, tmp_path: Path
) -> None:
    one, two = (empty.call(WORK, {"do": "sdk"}, tmp_path / name, 30) for name in ("one", "two"))
    assert one["loaded_in"] == two["loaded_in"]
    assert len({one["pid"], two["pid"], *one["loaded_in"]}) == 3
    os.kill(one["loaded_in"][0], signal.SIGKILL)
    for _ in range(100):
        if not _alive(one["loaded_in"][0]):
            break
        time.sleep(0.05)
    three = empty.call(WORK, {"do": "sdk"}, tmp_path / "three", 30)
    assert three["loaded_in"] != one["loaded_in"]


def test_an_sdk_whose_import_crashes_is_the_calls_failure(empty: Toolchain, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ToolchainFailed, match="was killed by SIGABRT; log in"):
            empty.call("tests.nightjar.crashing_work", {}, tmp_path / "s", 30)
    assert empty.call(WORK, {"do": "sdk"}, tmp_path / "s", 30)


def test_what_has_imported_an_sdk_ends_with_who_called_it(empty: Toolchain, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nightjar.toolchains.environment import Toolchain; a = sys.argv; "
        "found = Toolchain('empty', Path(a[1])).call(a[2], {'do': 'sdk'}, Path(a[3]), 30); "
        "Path(a[4]).write_text(str(found['loaded_in'][0]))"
    )
    command = [sys.executable, "-c", code, str(empty.folder), WORK, str(tmp_path / "s"), str(tmp_path / "pids")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert _gone(tmp_path / "pids")


def test_the_time_limit_ends_the_whole_group(empty: Toolchain, tmp_path: Path) -> None:
    job = {"do": "sleep", "pids": str(tmp_path / "pids")}
    with pytest.raises(ToolchainFailed, match="did not end within 2 s"):
        empty.call(WORK, job, tmp_path / "s", 2)
    assert _gone(tmp_path / "pids")


def test_what_a_call_and_its_children_hold_together_is_limited(empty: Toolchain, tmp_path: Path) -> None:
    """Neither process is beyond the limit by itself, and 64 GiB of reserved addresses are none."""
    job = {"do": "hold", "mib": 150, "pids": str(tmp_path / "pids")}
    assert empty.call(WORK, {**job, "seconds": 1.5}, tmp_path / "s", 60, memory_limit_bytes=2**30) == {}
    with pytest.raises(ToolchainFailed, match=r"used 0\.3 GiB of memory where 0\.2 are allowed and was killed; log in"):
        empty.call(WORK, {**job, "seconds": 60}, tmp_path / "s", 60, memory_limit_bytes=200 << 20)
    assert _gone(tmp_path / "pids")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_call_does_not_outlive_its_caller(empty: Toolchain, tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys; from pathlib import Path; from nightjar.toolchains.environment import Toolchain; a = sys.argv; "
        f"Toolchain('empty', Path(a[1])).call('{WORK}', {{'do': 'sleep', 'pids': a[3]}}, Path(a[2]), 60)"
    )
    command = [sys.executable, "-c", code, *map(str, (empty.folder, tmp_path / "s", tmp_path / "pids"))]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as caller:
        for _ in range(200):
            if (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().count(" "):
                break
            time.sleep(0.05)
        caller.send_signal(how)
    assert _gone(tmp_path / "pids")


def test_what_is_absent_or_of_another_version_is_missing(lock: Path) -> None:
    with pytest.raises(ToolchainMissing, match="is not installed: run `nightjar toolchain install rknn`") as caught:
        toolchain("rknn")
    assert caught.value.exit_code == 3
    folder = install("rknn").folder
    assert toolchain("rknn").folder == folder
    package = folder / "lib" / "python3.11" / "site-packages" / "the_sdk-2.3.2+cpu.dist-info"
    package.mkdir()
    lock.write_text("the-sdk==2.5.0\n")
    with pytest.raises(ToolchainMissing, match=r"has the-sdk 2\.3\.2 where 2\.5\.0 is pinned"):
        toolchain("rknn")
    lock.write_text("the_sdk==2.3.2\nother==1\n")
    with pytest.raises(ToolchainMissing, match="has other not at all where 1 is pinned"):
        toolchain("rknn")


def test_a_chosen_environment_is_used_whatever_is_pinned_and_enters_the_key_by_its_versions(
    lock: Path, tmp_path: Path
) -> None:
    usual = install("rknn", lambda said: None)
    older = tmp_path / "older" / "rknn"
    shutil.copytree(usual.folder, older, symlinks=True)
    site = next(older.glob("lib/python*")) / "site-packages"
    (site / "rknn_toolkit2-2.4.0.dist-info").mkdir(parents=True)
    with override_toolchain("rknn", older.parent) as found:
        assert found.folder == toolchain("rknn").folder == older
        assert plugin("targets", "rknn").sdk()["rknn-toolkit2"] == "2.4.0"
        with override_toolchain("rknn", usual.folder):
            assert "rknn-toolkit2" not in plugin("targets", "rknn").sdk()
        assert toolchain("rknn").folder == older
    assert toolchain("rknn").folder == usual.folder
    with (
        pytest.raises(ToolchainMissing, match="no toolchain of rknn"),
        override_toolchain("rknn", tmp_path / "nowhere"),
    ):
        pass


def test_installing_twice_makes_it_once_and_a_new_lock_makes_it_anew(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = install("rknn").folder
    assert json.loads((made / MARKER).read_text())["versions"].keys() == {"python"}
    assert subprocess.run([made / "bin" / "python", "-c", "pass"], check=False).returncode == 0
    number = made.stat().st_ino
    assert install("rknn").folder.stat().st_ino == number
    lock.write_text("# another\n")
    assert install("rknn").folder.stat().st_ino != number
    number = made.stat().st_ino

    def broken_once(found: Toolchain) -> dict[str, str]:
        if found.folder == made:
            raise ToolchainBroken("it does not import")
        return {}

    monkeypatch.setattr(making, "probe", broken_once)
    assert install("rknn").folder.stat().st_ino != number
    assert sorted(path.name for path in made.parent.iterdir()) == ["rknn", "rknn.lock"]


def test_what_pip_cannot_get_leaves_nothing(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.write_text("nightjar-has-no-such-package==1\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    stale = lock.parent / "place" / ".rknn.killed"
    stale.mkdir(parents=True)
    with pytest.raises(ToolchainBroken, match=r"cannot be installed: ERROR: No matching distribution .* log in "):
        install("rknn")
    assert sorted(path.name for path in (lock.parent / "place").iterdir()) == ["logs", "rknn.lock"]


def test_a_lock_and_metadata_are_read_without_starting_anything(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("# why\nruamel.yaml==0.19.1  # yaml\n\nTorch==2.13.0\n")
    assert pinned_versions(tmp_path / "requirements.txt") == {"ruamel-yaml": "0.19.1", "torch": "2.13.0"}
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("ruamel_yaml-0.19.1.dist-info", "torch-2.13.0+cpu.dist-info", "pip-26.3.dist-info"):
        (site / name).mkdir(parents=True)
    (tmp_path / "pyvenv.cfg").write_text("home = /usr\nversion = 3.11.7\n")
    assert installed_versions(tmp_path) == {"python": "3.11.7", "ruamel-yaml": "0.19.1", "torch": "2.13.0"}


def test_the_lock_is_complete() -> None:
    wanted = pinned_versions(ROOT / "targets" / "rknn" / "toolchain" / "requirements.txt")
    assert wanted["rknn-toolkit2"] == "2.5.0"
    assert all(version and version[0].isdigit() for version in wanted.values())


def test_the_last_line_of_a_log_is_the_one_that_says_why() -> None:
    assert last_line("I building\nE load: no file\nW WARN(3)\n") == "E load: no file"
    assert last_line("one\ntwo\n\n") == "two"
    assert last_line('Traceback (most recent call last):\n  File "x", line 1\n') == ""


def test_the_command_line_tells_them_apart(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toolchain", "status", "rknn"]) == 3
    assert "not installed: run `nightjar toolchain install rknn`" in capsys.readouterr().err
    assert main(["toolchain", "install", "rknn"]) == 0
    assert main(["toolchain", "status", "rknn"]) == 0
    assert "is as pinned and works" in capsys.readouterr().out


def test_doctor_lists_what_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path))
    (found,) = (finding for finding in examine() if finding.name == "toolchain rknn")
    assert found.outcome == "absent"  # nothing else needs it
    assert "nightjar toolchain install rknn" in found.detail


def test_a_target_without_an_sdk_has_no_toolchain() -> None:
    with pytest.raises(UnknownName, match=r"target 'onnx' has no toolchain; have .*rknn"):
        toolchain("onnx")


def test_the_environment_carries_no_settings_of_the_caller(empty: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "/x")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = empty.environment()
    assert found["PYTHONPATH"] == str(ROOT)
    assert found["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert not {"PYTHONSTARTUP", "SECRET_TOKEN"} & found.keys()


def test_commands_run_together_and_the_first_to_fail_ends_the_others(tmp_path: Path) -> None:
    def runs(code: str) -> int | None:
        return run_logged([sys.executable, "-c", code], os.environ, tmp_path, tmp_path / "log.txt", 60)

    met = "import pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.05)"
    assert run_parallel([lambda: runs(met.format("a", "b")), lambda: runs(met.format("b", "a"))], 2) == [0, 0]

    def fails() -> int | None:
        while not (tmp_path / "pids").exists():
            time.sleep(0.05)
        raise ToolchainFailed("refused")

    sleeps = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    sleeps += "os.rename('pid', 'pids')\ntime.sleep(1000)"
    with pytest.raises(ToolchainFailed, match="refused"):
        run_parallel([lambda: runs(sleeps), fails, lambda: runs("import time; time.sleep(5); open('third', 'w')")], 2)
    assert _gone(tmp_path / "pids")
    assert not (tmp_path / "third").exists()


def test_what_has_not_begun_is_not_waited_for() -> None:
    def fails() -> None:
        raise ToolchainFailed("refused")

    found: list[BaseException] = []

    def runs() -> None:
        try:
            run_parallel([fails, lambda: time.sleep(0.3), lambda: time.sleep(0.3), lambda: time.sleep(0.3)], 1)
        except ToolchainFailed as exc:
            found.append(exc)

    running = threading.Thread(target=runs, daemon=True)
    running.start()
    running.join(20)
    assert [str(exc) for exc in found] == ["refused"]
