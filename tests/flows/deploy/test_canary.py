"""A deploy that goes wrong: lying runtimes, changed bytes, full disks, kills; one release stays current."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightjar.boards.ssh import SshBoard
from nightjar.deploy.bundle import read_manifest
from nightjar.deploy.rollout import Canary, list_deployments, roll_back, roll_out
from nightjar.errors import SessionFailed
from tests.flows.conftest import ROOT
from tests.flows.deploy.placed import NAME, current, lying_runtime, place, releases
from tests.loopback import Loopback

pytestmark = pytest.mark.slow


def started(bundle: Path, canary: Canary) -> subprocess.Popen[bytes]:
    """Deploy in a process of its own."""
    source = (
        "import sys\nfrom pathlib import Path\nfrom nightjar.speech.manifest import load_speech\n"
        "from nightjar.deploy.rollout import Canary, roll_out\n"
        f"canary = Canary(load_speech(Path({str(canary.clips[0].audio.parent / 'speech.jsonl')!r})), "
        f"{dict(canary.expected)!r}, 100.0)\n"
        f"roll_out('loop', {NAME!r}, Path({str(bundle)!r}), canary, keep=3)\n"
    )
    return subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_until(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None or what(), "it ended before"
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_runtime_that_computes_something_else_fails_the_canary(
    loop: Loopback, toys: tuple[list[Path], Canary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fp, int8), canary = toys
    exact = canary._replace(limit=0.0)
    first = roll_out("loop", NAME, fp, exact, keep=3)
    assert (first.reason, first.canary_wer) == ("", 0)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(lying_runtime(loop, tmp_path, "return [-o for o in own(self, *a, **k)]")))
    failed = roll_out("loop", NAME, int8, exact, keep=3)
    assert failed.reason.startswith("canary WER ")
    assert failed.canary_wer is not None
    assert failed.canary_wer > 5
    assert current(loop) == failed.current == first.id
    assert releases(loop) == {first.id}
    crashing = lying_runtime(loop, tmp_path, "raise RuntimeError('RKNN_ERR_DEVICE_UNAVAILABLE')")
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(crashing))
    failed = roll_out("loop", NAME, int8, canary, keep=3)
    assert "RKNN_ERR_DEVICE_UNAVAILABLE" in failed.reason
    assert current(loop) == first.id
    assert releases(loop) == {first.id}
    again = roll_out("loop", NAME, fp, canary, keep=3)
    assert again.reason
    assert current(loop) == first.id, "the current one stays, even where it is itself what failed"
    assert releases(loop) == {first.id}


def test_a_byte_that_changes_on_the_board_before_the_switch_is_noticed(
    loop: Loopback, toys: tuple[list[Path], Canary], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fp, int8), canary = toys
    first = roll_out("loop", NAME, fp, canary, keep=3)
    own = SshBoard.put_all

    def damaging(self: SshBoard, pairs: Any) -> None:
        own(self, pairs)
        for _, remote in pairs:
            if remote.name == "tokens.txt":
                with (loop.scratch / remote).open("r+b") as file:
                    file.seek(1000)
                    file.write(b"!")

    with monkeypatch.context() as patch:
        patch.setattr(SshBoard, "put_all", damaging)
        with pytest.raises(
            SessionFailed, match=r"arrived damaged on board loop \(tokens.txt is not what was sent\), nothing"
        ):
            roll_out("loop", NAME, int8, canary, keep=3)
    assert current(loop) == first.id
    assert releases(loop) == {first.id}
    second = roll_out("loop", NAME, int8, canary, keep=3)
    assert second.current == second.id == current(loop), "the same command sends what is damaged"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_switches_nothing(loop: Loopback, toys: tuple[list[Path], Canary]) -> None:
    (fp, int8), canary = toys
    size = sum(path.stat().st_size for path in fp.rglob("*"))
    loop.scratch.mkdir(parents=True, exist_ok=True)
    option = f"size={int(size * 1.5) >> 10}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(loop.scratch)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not mount a tmpfs")
    try:
        first = roll_out("loop", NAME, fp, canary, keep=3)
        (loop.scratch / "filler").write_bytes(b"x" * (size // 4))
        with pytest.raises(SessionFailed, match=r"MiB free on the board|No space left") as raised:
            roll_out("loop", NAME, int8, canary, keep=3)
        assert "\n" not in str(raised.value)
        assert current(loop) == first.id
        assert releases(loop) == {first.id}
        (loop.scratch / "filler").unlink()
    finally:
        subprocess.run(["umount", str(loop.scratch)], check=True)


def test_a_kill_before_or_after_the_switch_leaves_one_release_current(
    loop: Loopback, toys: tuple[list[Path], Canary]
) -> None:
    (fp, int8), canary = toys
    first, second = roll_out("loop", NAME, fp, canary, keep=3).id, read_manifest(int8).id
    uploading = started(int8, canary)
    wait_until(lambda: (place(loop) / "releases" / second).exists(), uploading)
    uploading.send_signal(signal.SIGKILL)
    uploading.wait()
    assert current(loop) == first
    assert list_deployments("loop")[NAME].current == first
    switching = started(int8, canary)
    wait_until(lambda: current(loop) == second, switching)
    switching.send_signal(signal.SIGKILL)
    switching.wait()
    assert current(loop) == second
    assert list_deployments("loop")[NAME].history == [first, second]
    assert roll_back("loop", NAME).current == first == current(loop)


def test_two_at_once_take_turns(loop: Loopback, toys: tuple[list[Path], Canary]) -> None:
    bundles, canary = toys
    done: dict[Path, str] = {}

    def one(bundle: Path) -> None:
        done[bundle] = roll_out("loop", NAME, bundle, canary, keep=3).id

    threads = [threading.Thread(target=one, args=[bundle]) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 2
    history = [entry["id"] for entry in json.loads((place(loop) / "history.json").read_text())]
    assert sorted(history) == sorted(done.values()) == sorted(releases(loop))
    assert current(loop) == history[-1]
