"""Run the services of a stack: start them in the order of their needs, check their health, restart those that end.

As with containers, processes started by a service end with it: orphans become children of this process
(PR_SET_CHILD_SUBREAPER) and are killed. Otherwise a worker's flow runs would outlive it here but not in a container.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from nightjar.files import write_atomic
from nightjar.paths import ROOT
from nightjar.stack.compose_file import Health, Service
from nightjar.stack.native_services import ENVIRONMENT_MARK
from nightjar.stack.state import ServiceState, StackState

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TICK_S = 0.2
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 60.0  # before a restart, doubling, as Docker does
STEADY_S = 10.0  # after so long a run, the next restart waits the first delay again
STARTING_CHECK_S = 1.0  # between health checks before the first success
SAME_START_S = 2.0  # start times are relative to the clock, which may be adjusted
STATUS_OF_NEED = {"service_healthy": "healthy", "service_completed_successfully": "done"}


class RunningService:
    """One service, its process and its status."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service, self.log = service, log
        self.status, self.restarts = "waiting", 0
        self.process: subprocess.Popen[bytes] | None = None
        self.check: subprocess.Popen[bytes] | None = None
        self.started_s = self.checked_s = self.next_start_s = 0.0
        self.delay_s, self.failed_checks = FIRST_DELAY_S, 0

    def start(self) -> None:
        """Start its process."""
        service = self.service
        with self.log.open("ab") as log:
            self.process = self._run(service.command, log, service.user)
        self.started_s = self.checked_s = time.monotonic()
        self.failed_checks = 0
        self.status = "starting" if service.health or service.restart == "on-failure" else "healthy"

    def update(self) -> None:
        """Update the status from the process's end or its health check, and start a check that is due."""
        health = self.service.health
        if self.process is None:
            return
        if (exit_status := self.process.poll()) is not None:
            self._ended(exit_status)
        elif health is not None and self.check is not None:
            self._read_check(health, self.check)
        elif health is not None:
            every_s = health.interval_s if self.status == "healthy" else STARTING_CHECK_S
            if time.monotonic() - self.checked_s >= every_s:
                self.checked_s = time.monotonic()
                self.check = self._run(health.test, subprocess.DEVNULL)

    def _ended(self, exit_status: int) -> None:
        self.end_check()
        self.process = None
        if self.service.restart == "no" or (self.service.restart == "on-failure" and exit_status == 0):
            self.status = "done" if exit_status == 0 else "ended"
            return
        now = time.monotonic()
        if now - self.started_s > STEADY_S:
            self.delay_s = FIRST_DELAY_S
        self.status, self.next_start_s = "ended", now + self.delay_s
        self.delay_s = min(LONGEST_DELAY_S, 2 * self.delay_s)

    def _run(
        self, command: Sequence[str], output: int | BinaryIO, user: str | None = None
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            env=self.service.environment,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd="/" if user else ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this supervisor
        )

    def _read_check(self, health: Health, check: "subprocess.Popen[bytes]") -> None:
        now, exit_status = time.monotonic(), check.poll()
        if exit_status is None and now - self.checked_s < health.timeout_s:
            return
        if exit_status == 0:
            self.status, self.failed_checks = "healthy", 0
        elif self.status == "healthy" or now - self.started_s > health.start_period_s:
            self.failed_checks += 1
            self.status = "unhealthy" if self.failed_checks >= health.retries else self.status
        self.end_check()

    def end_check(self) -> None:
        """End a running health check."""
        if self.check is not None:
            self.check.kill()
            self.check.wait()
            self.check = None

    def stop(self) -> None:
        """End its process as docker-compose.yml says: its signal, its grace period, then SIGKILL."""
        self.end_check()
        if self.process is not None:
            self.process.send_signal(signal.Signals[self.service.stop_signal])
            try:
                self.process.wait(self.service.stop_grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        self.status = "stopped"


def supervise(
    folder: Path, ports: dict[str, int], services: list[Service], on_change: Callable[[str, str, Service], None]
) -> None:
    """Start the services and keep them running until KeyboardInterrupt, then end them in reverse order.

    on_change: called with the status before and after.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    running = {each.name: RunningService(each, folder / "logs" / f"{each.name}.log") for each in services}
    written: StackState | None = None
    try:
        while True:
            for each in running.values():
                before = each.status
                _step(folder, each, running)
                if each.status != before:
                    on_change(before, each.status, each.service)
            written = _write_changes(folder, ports, running, written)
            time.sleep(TICK_S)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not leave services half ended
            signal.signal(number, signal.SIG_IGN)
        for each in reversed(running.values()):
            each.stop()
            _kill_orphans(running)
        _write_changes(folder, ports, running, None)


def _step(folder: Path, each: RunningService, running: Mapping[str, RunningService]) -> None:
    had_process = each.process is not None
    if (folder / "stopped" / each.service.name).exists():
        if each.status != "stopped":
            each.stop()
    else:
        each.update()
        if each.status == "stopped":
            each.status = "waiting"
        needs = each.service.needs.items()
        if each.status == "waiting" and all(running[name].status == STATUS_OF_NEED[need] for name, need in needs):
            each.start()
        elif each.status == "ended" and each.service.restart != "no" and time.monotonic() >= each.next_start_s:
            each.restarts += 1
            each.start()
    if had_process and each.process is None:
        _kill_orphans(running)


def _write_changes(
    folder: Path, ports: dict[str, int], running: Mapping[str, RunningService], last: StackState | None
) -> StackState:
    services = {}
    for name, each in running.items():
        pid = each.process.pid if each.process else 0
        services[name] = ServiceState(each.status, pid, start_time(pid), each.restarts)
    state = StackState(os.getpid(), ports, services)
    if state != last:
        write_atomic(folder / "state.json", json.dumps(state._asdict()))
    return state


def _kill_orphans(running: Mapping[str, RunningService]) -> None:
    """Kill what ended services left behind, and in turn what that leaves behind."""
    known = {process.pid for each in running.values() for process in (each.process, each.check) if process is not None}
    while orphans := [child for child in psutil.Process().children() if child.pid not in known]:
        for orphan in orphans:
            with contextlib.suppress(psutil.Error):
                orphan.kill()
                orphan.wait()


def end_leftovers(folder: Path, state: StackState | None, grace_s: float = 15.0) -> None:
    """End services of this stack whose supervisor was killed."""
    recorded = {each.pid: each.start_time for each in state.parts.values()} if state else {}
    mark = f"{folder}:"
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.pid in recorded and abs(start_time(process.pid) - recorded[process.pid]) < SAME_START_S
            if ours or (process.environ().get(ENVIRONMENT_MARK, "").startswith(mark) and process.pid != os.getpid()):
                left.append(process)
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):  # PostgreSQL waits for its clients with SIGTERM
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(sent)
        _, left = psutil.wait_procs(left, timeout=grace_s)


def start_time(pid: int) -> float:
    """Return when a process started, in seconds since 1970; 0 if it is gone or a zombie."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return 0.0 if not pid or process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    return 0.0
