"""Keep the parts of a stack running: start them as their needs allow, ask how they are, start anew what dies.

As with containers, what a part started ends with it: orphans come to this process (PR_SET_CHILD_SUBREAPER) and are
killed, or a worker's flow runs would outlive it here and not there.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nightjar.paths import ROOT
from nightjar.stack.native_services import ENVIRONMENT_MARK, Part
from nightjar.stack.state import PartState, State, is_stopped, write_state

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TICK_S = 0.2
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 60.0  # before a restart, doubling; as Docker has it
STEADY_S = 10.0  # up for so long, and the next restart waits the first delay again
STARTING_CHECK_S = 1.0  # between health checks before the first success

Tell = Callable[[str, str, Part], None]  # before, after


class Kept:
    """One part, its process and how it is."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part, self.log = part, log
        self.doing, self.restarts = "waiting", 0
        self.process: subprocess.Popen[bytes] | None = None
        self.check: subprocess.Popen[bytes] | None = None
        self.began_s = self.checked_s = self.next_s = 0.0
        self.delay_s, self.misses = FIRST_DELAY_S, 0

    def start(self) -> None:
        """Start its process, in a session of its own, so that Ctrl-C is ours to pass on."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.part.command,
                env=self.part.environment,
                user=self.part.user,
                group=self.part.user,
                extra_groups=[] if self.part.user else None,
                cwd="/" if self.part.user else ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.began_s = self.checked_s = time.monotonic()
        self.misses = 0
        self.doing = "starting" if self.part.health or self.part.restart == "on-failure" else "healthy"

    def look(self) -> None:
        """Take in its end, or what its health check says, and ask again when it is time."""
        if self.process is None:
            return
        if (status := self.process.poll()) is not None:
            self._ended(status)
        elif self.part.health is not None:
            self._ask(self.part.health.interval_s if self.doing == "healthy" else STARTING_CHECK_S)

    def _ended(self, status: int) -> None:
        self.forget_check()
        self.process = None
        if self.part.restart == "no" or (self.part.restart == "on-failure" and status == 0):
            self.doing = "done" if status == 0 else "ended"
            return
        now = time.monotonic()
        if now - self.began_s > STEADY_S:
            self.delay_s = FIRST_DELAY_S
        self.doing, self.next_s = "ended", now + self.delay_s
        self.delay_s = min(LONGEST_DELAY_S, 2 * self.delay_s)

    def _ask(self, every_s: float) -> None:
        assert self.part.health is not None
        health, now = self.part.health, time.monotonic()
        if self.check is not None:
            status = self.check.poll()
            if status is None and now - self.checked_s < health.timeout_s:
                return
            if status == 0:
                self.doing, self.misses = "healthy", 0
            elif self.doing == "healthy" or now - self.began_s > health.start_period_s:
                self.misses += 1
                self.doing = "unhealthy" if self.misses >= health.retries else self.doing
            self.forget_check()
        elif now - self.checked_s >= every_s:
            self.checked_s = now
            self.check = subprocess.Popen(
                health.test,
                env=self.part.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def forget_check(self) -> None:
        """End a health check that is under way."""
        if self.check is not None:
            self.check.kill()
            self.check.wait()
            self.check = None

    def stop(self) -> None:
        """End its process as docker-compose.yml says: its signal, its grace, then SIGKILL."""
        self.forget_check()
        if self.process is not None:
            self.process.send_signal(signal.Signals[self.part.stop_signal])
            try:
                self.process.wait(self.part.stop_grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        self.doing = "stopped"

    def state(self) -> PartState:
        """Say what it is doing."""
        pid = self.process.pid if self.process else 0
        return PartState(self.doing, pid, born(pid) if pid else 0, self.restarts)


def supervise(folder: Path, ports: dict[str, int], parts: list[Part], tell: Tell) -> None:
    """Start the parts and keep them running until KeyboardInterrupt, then end them in the other order."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    kept = {part.name: Kept(part, folder / "logs" / f"{part.name}.log") for part in parts}
    said: State | None = None
    try:
        while True:
            for each in kept.values():
                before = each.doing
                _step(folder, each, kept)
                if each.doing != before:
                    tell(before, each.doing, each.part)
            said = _say(folder, ports, kept, said)
            time.sleep(TICK_S)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # once is enough: parts left half ended would be the worse
            signal.signal(number, signal.SIG_IGN)
        for each in reversed(kept.values()):
            each.stop()
            _end_orphans(kept)
        _say(folder, ports, kept, None)


def _step(folder: Path, each: Kept, kept: dict[str, Kept]) -> None:
    running = each.process is not None
    if is_stopped(folder, each.part.name):
        if each.doing != "stopped":
            each.stop()
    else:
        each.look()
        if each.doing == "stopped":
            each.doing = "waiting"
        if each.doing == "waiting" and _may_start(each.part, kept):
            each.start()
        elif each.doing == "ended" and each.part.restart != "no" and time.monotonic() >= each.next_s:
            each.restarts += 1
            each.start()
    if running and each.process is None:
        _end_orphans(kept)


def _may_start(part: Part, kept: dict[str, Kept]) -> bool:
    wanted = {"service_healthy": "healthy", "service_completed_successfully": "done"}
    return all(kept[needed].doing == wanted[condition] for needed, condition in part.needs.items())


def _say(folder: Path, ports: dict[str, int], kept: dict[str, Kept], last: State | None) -> State:
    state = State(os.getpid(), ports, {name: each.state() for name, each in kept.items()})
    if state != last:
        write_state(folder, state)
    return state


def _end_orphans(kept: dict[str, Kept]) -> None:
    """Kill what ended parts left behind, and what that leaves behind in turn."""
    known = {process.pid for each in kept.values() for process in (each.process, each.check) if process is not None}
    while orphans := [pid for pid in children(os.getpid()) if pid not in known]:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def end_leftovers(folder: Path, state: State | None, grace_s: float = 15.0) -> None:
    """End parts of this stack whose keeper was killed; they run on without one."""
    left = {part.pid for part in state.parts.values() if part.pid and born(part.pid) == part.born} if state else set()
    left |= set(_marked(folder))
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):  # PostgreSQL waits for its clients with SIGTERM
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        end = time.monotonic() + grace_s
        while (left := {pid for pid in left if _lives(pid)}) and time.monotonic() < end:
            time.sleep(0.1)


def _marked(folder: Path) -> Iterator[int]:
    mark = f"{ENVIRONMENT_MARK}={folder}:".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes() and int(path.parent.name) != os.getpid():
                yield int(path.parent.name)


def children(pid: int) -> list[int]:
    """List the processes whose parent is this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(_fields(path)[1]) == pid:
                found.append(int(path.parent.name))
    return found


def born(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 for one that is gone or a zombie."""
    with contextlib.suppress(OSError):
        fields = _fields(Path(f"/proc/{pid}/stat"))
        return 0 if fields[0] == "Z" else int(fields[19])
    return 0


def _lives(pid: int) -> bool:
    return born(pid) > 0


def _fields(path: Path) -> list[str]:
    return path.read_text(errors="replace").rpartition(")")[2].split()  # a program's name may hold anything
