"""Faults thrown at harvests over a real sshd: a proxy that cuts and flips, kills, full disks, clips that crash.

A harvest is a process of its own (`python tests/faults.py SETTINGS`), its runner a fake that writes down what it
computes; everything else is what a person would run.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nightjar.device.log_mel import log_mel  # noqa: E402
from tests.loopback import Loopback  # noqa: E402

FRAMES, ROWS, WIDTH = 20, 50, 64
RUNNER = """
import hashlib, json, os, signal, time
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent

class Runner:
    def run(self, part, inputs, constant={}):
        name = hashlib.sha1(inputs["mel"].tobytes()).hexdigest()[:10]
        plan = json.loads((HERE / "plan.json").read_text())
        time.sleep(plan.get("sleep", 0))
        with (HERE / "begun").open("a") as file:
            file.write(name + "\\n")
        if name in plan.get("crash", ()):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name in plan.get("hang", ()) or (name in plan.get("hang_once", ()) and not (HERE / name).exists()):
            (HERE / name).touch()
            time.sleep(600)
        rng = np.random.default_rng(int(name, 16))
        return {"hidden": rng.standard_normal((1, ROWS, WIDTH)).astype(np.float32)}

    def close(self):
        pass

def open_runner(folder, parts, options=None):
    return Runner()
""".replace("ROWS", str(ROWS)).replace("WIDTH", str(WIDTH))


class Proxy:
    """A TCP proxy before sshd that cuts every connection, or flips a byte of what passes, when told to."""

    def __init__(self, port: int) -> None:
        self.to, self.flip, self.passed = port, False, 0
        self._open = set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            try:
                theirs = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                ours.close()
                continue
            threading.Thread(target=self._join, args=(ours, theirs), daemon=True).start()

    def _join(self, ours: socket.socket, theirs: socket.socket) -> None:
        with ours, theirs:
            self._open |= {ours, theirs}
            back = threading.Thread(target=self._pass, args=(theirs, ours), daemon=True)
            back.start()
            self._pass(ours, theirs)
            back.join()
            self._open -= {ours, theirs}

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if self.flip and len(data) > 1000:
                    self.flip = False
                    data = data[:500] + bytes([data[500] ^ 4]) + data[501:]
                self.passed += len(data)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # stopped before
            self._listener.shutdown(socket.SHUT_RDWR)  # who is blocked in accept would accept one more
        self._listener.close()
        self.cut()
        end = time.monotonic() + 5
        while self._open and time.monotonic() < end:
            time.sleep(0.02)


class Bench:
    """A board behind a proxy, a fake binary, clips, and what a harvest of them must come to."""

    def __init__(self, folder: Path, clips: int, loop: Loopback, size_mib: int = 0) -> None:
        self.folder, self.loop, self.proxy = folder, loop, Proxy(loop.port)
        self.mounted: list[Path] = []
        self.disk = {name: self._disk(folder / f"{name} disk", size_mib) for name in ("board", "host")}
        loop.scratch = self.disk["board"] / "scratch é'; $(x)"
        self.fake = folder / "fake"
        self.fake.mkdir()
        (self.fake / "fakerunner.py").write_text(RUNNER)
        self.python = folder / "board-python"
        self.python.write_text(f"#!/bin/sh\nPYTHONPATH='{self.fake}' exec {sys.executable} \"$@\"\n")
        self.python.chmod(0o755)
        known = loop.folder / "known_proxy"
        public = " ".join((loop.folder / "host.pub").read_text().split()[:2])
        known.write_text(f"[127.0.0.1]:{self.proxy.port} {public}\n")
        config = loop.configure(folder / "config", known=known, port=self.proxy.port)
        self.boards = loop.boards(folder / "boards.toml", config=config, python=str(self.python))
        self.binary = folder / "binary"
        self.binary.mkdir()
        shape = [1, ROWS, WIDTH]
        encoder = {
            "file": "encoder.bin",
            "runner": "fake",
            "outputs": [{"name": "hidden", "shape": shape, "dtype": "float32"}],
        }
        model = {"family": "whisper", "dims": {"n_mels": 80}, "n_frames": FRAMES, "recipe": {}}
        model["parts"] = {"encoder": encoder}
        (self.binary / "model.json").write_text(json.dumps(model))
        (self.binary / "binary.json").write_text(json.dumps({"parts": {"encoder": encoder}}))
        (self.binary / "encoder.bin").write_bytes(random.Random(1).randbytes(300_000))
        self.marks: dict[str, str] = {}
        self.expected: dict[str, bytes] = {}
        (folder / "clips").mkdir()
        rng = np.random.default_rng(5)
        for number in range(clips):
            name = f"c{number:04d}" if number % 7 else f"c{number:04d} 'é;$(x)"
            wave = (rng.standard_normal(FRAMES * 160) * 900).astype(np.int16)
            np.save(folder / "clips" / f"{name}.npy", wave)
            mel = log_mel(wave.astype(np.float32) / 32768.0, 80, FRAMES)[None]
            self.marks[name] = hashlib.sha1(mel.tobytes()).hexdigest()[:10]
            hidden = np.random.default_rng(int(self.marks[name], 16)).standard_normal((1, ROWS, WIDTH))
            self.expected[name] = hidden.astype(np.float32)[0].astype(np.float16).tobytes()

    def _disk(self, path: Path, size_mib: int) -> Path:
        path.mkdir()
        if size_mib and os.geteuid() == 0:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)]
            if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
                self.mounted.append(path)
        return path

    def close(self) -> None:
        self.proxy.stop()
        for path in self.mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)

    @property
    def work(self) -> Path:
        return self.disk["host"] / "work"

    def plan(self, **said: Any) -> None:
        (self.fake / "plan.json").write_text(json.dumps({"sleep": 0.003, **said}))

    def fresh(self) -> None:
        """Forget the last harvest; the board's cache stays."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.fake / "begun").write_text("")
        self.plan()

    def start(self, boards: str = "loop") -> subprocess.Popen[str]:
        settings = {"binary": str(self.binary), "clips": str(self.folder / "clips"), "work": str(self.work)}
        settings |= {"out": str(self.folder / "lines.json"), "boards": boards}
        return subprocess.Popen(
            [sys.executable, __file__, json.dumps(settings)],
            env={**os.environ, "NIGHTJAR_BOARDS": str(self.boards)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def begun(self) -> Counter[str]:
        return Counter((self.fake / "begun").read_text().split())

    def finished(self) -> set[str]:
        """Name the clips that the host has written down."""
        path = self.work / "finished.jsonl"
        if not path.exists():
            return set()
        texts = path.read_bytes().split(b"\n")[:-1]
        return {json.loads(text)["line"]["id"] for text in texts}

    def sessions(self) -> list[int]:
        """List our session processes on the board."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if any(str(self.loop.scratch).encode() in word and b"session.pyz" in word for word in words):
                    found.append(int(process.name))
        return found

    def until(self, count: int, process: subprocess.Popen[str], within_s: float = 30) -> None:
        """Wait until so many clips are finished, or the process is."""
        end = time.monotonic() + within_s
        while len(self.finished()) < count and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)

    def check(self, aside: set[str]) -> None:
        """Hold what a finished harvest left against what it must come to."""
        lines = json.loads((self.folder / "lines.json").read_text())
        assert [line["id"] for line in lines] == list(self.expected), "a result is lost, doubled or out of order"
        assert {line["id"] for line in lines if "error" in line} == aside
        for name in self.expected.keys() - aside:
            hidden = np.load(self.work / "harvest" / f"{name}.hidden.npy")
            assert hidden.tobytes() == self.expected[name], f"{name} has another's result"
        kept = {path.name for path in (self.work / "harvest").iterdir()}
        assert kept == {f"{name}.hidden.npy" for name in self.expected.keys() - aside}, "half files are left here"
        left = [path for path in (self.loop.scratch / "jobs").glob("*")] + list(
            (self.loop.scratch / "cache").glob("*.part")
        )
        assert not left, f"scratch is left on the board: {left}"
        end = time.monotonic() + 5
        while self.sessions() and time.monotonic() < end:
            time.sleep(0.05)
        assert not self.sessions(), "a session still runs on the board"


FAULTS = (
    *("sshd killed", "sshd down for a second", "connection cut", "byte flipped in transit", "host killed"),
    *(
        "session killed",
        "board disk full",
        "host disk full",
        "byte flipped at rest",
        "clip crashes",
        "runner hangs once",
    ),
    "reboot",
)


def throw(bench: Bench, faults: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """Harvest everything with faults on the way, by the same command as often as it takes; return what it took."""
    bench.fresh()
    began, total, commands, said = time.monotonic(), len(bench.expected), 0, list[str]()
    crash, hang = chance.sample(list(bench.expected), 2)
    (bench.fake / bench.marks[hang]).unlink(missing_ok=True)
    bench.plan(
        crash=[bench.marks[crash]] if "clip crashes" in faults else [],
        hang_once=[bench.marks[hang]] if "runner hangs once" in faults else [],
    )
    known: list[tuple[set[str], Counter[str]]] = []
    damaged: set[str] = set()
    process: subprocess.Popen[str] | None = None
    for fault, at in zip(faults, sorted(chance.randrange(1, total * 3 // 4) for _ in faults), strict=True):
        while process is None or (process.poll() is not None and process.returncode != 0):
            if process is not None:
                _failed_in_order(process, said)
            process, commands = bench.start(), commands + 1
            bench.until(at, process)
        bench.until(at, process)
        strike(bench, fault, process, chance)
        known.append((bench.finished(), bench.begun()))
        if fault == "byte flipped at rest":
            damaged |= flip_at_rest(bench, chance)
    assert process is not None
    while process.wait(timeout=90):
        _failed_in_order(process, said)
        assert commands < 3 + 2 * len(faults), said
        process, commands = bench.start(), commands + 1
    process.communicate()
    bench.check({crash} if "clip crashes" in faults else set())
    after = bench.begun()
    for names, counts in known:
        again = [name for name in names - damaged if after[bench.marks[name]] != counts[bench.marks[name]]]
        assert not again, f"computed again though finished: {again}"
    twice = sum(count - 1 for count in after.values())
    return {"faults": list(faults), "commands": commands, "again": twice, "seconds": time.monotonic() - began}


def _failed_in_order(process: subprocess.Popen[str], said: list[str]) -> None:
    """Hold a harvest that ended early to its promise: killed, or one line and an exit code of ours."""
    said.append(process.communicate()[1])
    assert process.returncode in (3, 4, -signal.SIGKILL), said
    if process.returncode > 0:
        last = said[-1].strip().splitlines()[-1]
        assert not said[-1].startswith("Traceback"), said
        assert "run the same command" in last or "look at its power" in last or "does not" in last, said


def strike(bench: Bench, fault: str, process: subprocess.Popen[str], chance: random.Random) -> None:
    """Do what the fault says, now."""
    if fault in ("sshd killed", "reboot"):
        bench.loop.kill_sessions()
    if fault in ("sshd down for a second", "reboot"):
        bench.loop.stop()
        bench.loop.kill_sessions()
        if fault == "reboot":
            for pid in bench.sessions():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            (bench.loop.folder / "lock").unlink(missing_ok=True)
        time.sleep(1)
        bench.loop.start()
    elif fault == "connection cut":
        bench.proxy.cut()
    elif fault == "byte flipped in transit":
        bench.proxy.flip = True
    elif fault in ("host killed", "byte flipped at rest"):
        process.kill()
        process.wait()
    elif fault == "session killed":
        for pid in bench.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    elif fault.endswith("disk full"):
        fill(bench.disk[fault.split()[0]], chance.uniform(0.3, 1.0), process)


def fill(disk: Path, seconds: float, process: subprocess.Popen[str]) -> None:
    """Leave not a byte free for a while; on a disk that is not small, nothing happens."""
    if shutil.disk_usage(disk).total > 1 << 30:
        return
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    time.sleep(seconds)
    ballast.unlink()


def flip_at_rest(bench: Bench, chance: random.Random) -> set[str]:
    """Flip a bit of a file that a killed harvest left on the board or here; return the clips this may concern."""
    time.sleep(0.3)
    files = [path for top in (bench.loop.scratch, bench.work) for path in top.rglob("*") if path.is_file()]
    files = [path for path in files if path.stat().st_size > 100 and path.name != "job.loop.json"]
    path = chance.choice(files)
    with path.open("r+b") as file:
        at = chance.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    if path.name == "finished.jsonl" or path.name == "identity":
        return set(bench.expected)  # what nobody can read was not finished
    return {name for name in bench.expected if path.name.startswith(name)}


def main(settings: dict[str, str]) -> int:
    """Harvest as tasks/harvest.py does, and write the lines."""
    from nightjar.boards.config import find_board
    from nightjar.boards.ssh import SshBoard
    from nightjar.errors import NightjarError
    from nightjar.sessions import run as job
    from nightjar.sessions import scheduler
    from nightjar.speech.manifest import Clip

    job.SILENCE_S, scheduler.RETRY_S = 3.0, 0.3
    waves = {path.stem: np.load(path) for path in sorted(Path(settings["clips"]).glob("*.npy"))}
    boards = [SshBoard(find_board(alias)) for alias in settings["boards"].split(",")]
    for board in boards:
        board.runners = {"fake": "fakerunner"}
    nothing: list[Clip] = []
    try:
        lines = job.run_session(
            boards, Path(settings["binary"]), nothing, Path(settings["work"]), decode=False, harvest=["hidden"],
            waves=waves,
        )  # fmt: skip
    except NightjarError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    Path(settings["out"]).write_text(json.dumps(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
