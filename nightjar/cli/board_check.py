"""`board check`: whether a board answers, has what a target needs, and is in a state to run."""

import time
from typing import Literal

from nightjar.boards.board import BoardFacts
from nightjar.boards.config import BoardAddress, find_board, ssh_settings
from nightjar.boards.ssh import BoardStatus, Health, SshBoard
from nightjar.cli.doctor import Finding
from nightjar.errors import printable
from nightjar.plugins.board_choice import PYTHON, board_of, missing_runtimes, preflight_findings
from nightjar.plugins.registry import Plugin, names, plugin
from nightjar.plugins.target import probe_of
from nightjar.store.fingerprint import module_file

DISK_BYTES = 1 << 30  # a small model, its clips and its harvest
MEMORY_BYTES = 1 << 28
CELSIUS = 80.0  # near where boards slow down
SKEW_S = 5.0


def check(alias: str, target: str | None) -> list[Finding]:
    """Check a board for one target, by default that of boards.toml, else for all; raises BoardMissing."""
    address = find_board(alias)
    wanted = target or address.entry.target
    if address.entry.adb:
        return _by_adb(alias, wanted)
    chosen = [plugin("targets", name) for name in ([wanted] if wanted else names("targets"))]
    runtimes = tuple(runtime for each in chosen for runtime in each.load().RUNTIMES)
    with SshBoard(address) as board:
        before = time.time()
        status = board.status(runtimes, "")
        after = time.time()
        probed = {each.load().NAME: board.facts(each.load().RUNTIMES, probe_of(each)) for each in chosen}
    ssh = ssh_settings(address)
    findings = [Finding("reached", "ok", f"{ssh.user}@{ssh.host} port {ssh.port}, in {after - before:.1f} s")]
    findings += _python(address, status)
    for each in chosen:
        findings += _target(each, probed[each.load().NAME], missing="missing" if wanted else "absent")
    findings += _health(status.health, before, after)
    lock = f"held by {printable(status.holder)}" if status.holder else "free"
    findings.append(_advice("lock", bool(status.holder), lock, "a run waits for it"))
    return findings


def _by_adb(alias: str, wanted: str | None) -> list[Finding]:
    """Check a device that adb reaches, by default for the first target with an adb.py."""
    name = wanted or next((each for each in names("targets") if module_file(f"targets.{each}.adb")), "")
    found = board_of(plugin("targets", name), alias)
    versions = ", ".join(f"{each} {version}" for each, version in found.facts.runtimes.items() if each != "numpy")
    return [
        Finding("reached", "ok", f"adb {found.adb}"),
        Finding("board", "ok", found.facts.soc),
        Finding(f"target {name}", "ok", versions),
    ]


def _python(address: BoardAddress, status: BoardStatus) -> list[Finding]:
    facts, program, notes = status.facts, address.entry.python, address.entry.notes
    old = tuple(map(int, facts.python.split(".")[:2])) < PYTHON
    needed = f"; a session needs {PYTHON[0]}.{PYTHON[1]} or later" if old else f", {program}"
    numpy = facts.runtimes.get("numpy", "absent")
    install = f"`{program} -m pip install numpy` on the board"
    return [
        Finding("board", "ok", facts.soc + (f"; {notes}" if notes else "")),
        Finding("python", "missing" if old else "ok", facts.python + needed),
        Finding("numpy", "missing", install) if numpy == "absent" else Finding("numpy", "ok", numpy),
    ]


def _target(target: Plugin, facts: BoardFacts, missing: Literal["missing", "absent"]) -> list[Finding]:
    module = target.load()
    name = f"target {module.NAME}"
    absent = [each for each in missing_runtimes(module, facts) if each != "numpy"]
    if absent and missing == "absent":
        return [Finding(name, "absent", f"no {', '.join(absent)} on the board")]
    versions = ", ".join(f"{each} {version}" for each, version in facts.runtimes.items() if each != "numpy")
    found = [Finding(name, "missing" if absent else "ok", versions)]
    for level, message in preflight_findings(target, facts):
        found.append(Finding(name, "missing" if level == "refuse" else "absent", message))
    return found


def _health(health: Health, before: float, after: float) -> list[Finding]:
    skew_s = health.time_s - min(max(health.time_s, before), after)
    slow = health.governor not in ("", "performance")
    governor = health.governor or "the board does not report one"
    hot = health.celsius is not None and health.celsius > CELSIUS
    celsius = f"{health.celsius:.0f} °C" if health.celsius is not None else "the board does not report one"
    return [
        _free("disk", health.disk_free_bytes, DISK_BYTES),
        _free("memory", health.memory_free_bytes, MEMORY_BYTES),
        _advice("governor", slow, governor, "RTF varies; `cpupower frequency-set -g performance` on the board"),
        _advice("temperature", hot, celsius, "it slows down when hot: let it cool"),
        _advice("clocks", bool(health.throttled), health.throttled or "not throttled", "a run is marked as throttled"),
        _advice("clock", abs(skew_s) > SKEW_S, f"{skew_s:+.0f} s from ours", "`timedatectl set-ntp true` on the board"),
    ]


def _advice(name: str, problem: bool, value: str, remedy: str) -> Finding:
    return Finding(name, "absent", f"{value}: {remedy}") if problem else Finding(name, "ok", value)


def _free(name: str, free_bytes: int, needed_bytes: int) -> Finding:
    return Finding(name, "ok" if free_bytes >= needed_bytes else "missing", f"{free_bytes / 2**30:.1f} GiB free")
