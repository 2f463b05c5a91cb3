"""Look at a board before a run: can it be reached, does it have what a target needs, is it fit."""

import time
from typing import Literal

from nightjar.boards.board import BoardFacts
from nightjar.boards.config import BoardAddress, find_board, ssh_settings
from nightjar.boards.ssh import BoardStatus, Health, SshBoard
from nightjar.cli.doctor import Finding
from nightjar.plugins.board_choice import PYTHON, board_of, missing_runtimes, preflight_findings
from nightjar.plugins.registry import Plugin, names, plugin
from nightjar.plugins.target import probe_of
from nightjar.store.fingerprint import module_file
from nightjar.text import printable

DISK_BYTES = 1 << 30  # a small model, its clips and its harvest
MEMORY_BYTES = 1 << 28
CELSIUS = 80.0  # near where boards slow down
SKEW_S = 5.0


def check(alias: str, target: str | None) -> list[Finding]:
    """Look at a board for one target, by default that of boards.toml, else for all; raises BoardMissing."""
    reach = find_board(alias)
    wanted = target or reach.entry.target
    if reach.entry.adb:
        return _by_adb(alias, wanted)
    chosen = [plugin("targets", name) for name in ([wanted] if wanted else names("targets"))]
    runtimes = tuple(runtime for each in chosen for runtime in each.load().RUNTIMES)
    with SshBoard(reach) as board:
        before = time.time()
        status = board.status(runtimes, "")
        after = time.time()
        probed = {each.load().NAME: board.facts(each.load().RUNTIMES, probe_of(each)) for each in chosen}
    way = ssh_settings(reach)
    findings = [Finding("reached", "ok", f"{way.user}@{way.host} port {way.port}, in {after - before:.1f} s")]
    findings += _python(reach, status)
    for each in chosen:
        findings += _target(each, probed[each.load().NAME], missing="missing" if wanted else "absent")
    findings += _health(status.health, before, after)
    if status.holder:
        findings.append(Finding("lock", "absent", f"held by {printable(status.holder)}: a run waits for it"))
    else:
        findings.append(Finding("lock", "ok", "free"))
    return findings


def _by_adb(alias: str, wanted: str | None) -> list[Finding]:
    """Look at a device that adb reaches, for a target that knows how."""
    name = wanted or next((each for each in names("targets") if module_file(f"targets.{each}.adb")), "")
    found = board_of(plugin("targets", name), alias)
    versions = ", ".join(f"{each} {version}" for each, version in found.facts.runtimes.items() if each != "numpy")
    return [
        Finding("reached", "ok", f"adb {found.adb}"),
        Finding("board", "ok", found.facts.soc),
        Finding(f"target {name}", "ok", versions),
    ]


def _python(reach: BoardAddress, status: BoardStatus) -> list[Finding]:
    facts = status.facts
    old = tuple(map(int, facts.python.split(".")[:2])) < PYTHON
    numpy = facts.runtimes.get("numpy", "absent")
    return [
        Finding("board", "ok", facts.soc + (f"; {reach.entry.notes}" if reach.entry.notes else "")),
        Finding("python", "missing", f"{facts.python}; a session needs {PYTHON[0]}.{PYTHON[1]} or later")
        if old
        else Finding("python", "ok", f"{facts.python}, {reach.entry.python}"),
        Finding("numpy", "missing", f"`{reach.entry.python} -m pip install numpy` on the board")
        if numpy == "absent"
        else Finding("numpy", "ok", numpy),
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
    skew = health.time_s - min(max(health.time_s, before), after)
    slow = health.governor not in ("", "performance")
    hot = health.celsius is not None and health.celsius > CELSIUS
    return [
        Finding(
            "disk", "missing" if health.disk_free_bytes < DISK_BYTES else "ok", f"{_gib(health.disk_free_bytes)} free"
        ),
        Finding(
            "memory",
            "missing" if health.memory_free_bytes < MEMORY_BYTES else "ok",
            f"{_gib(health.memory_free_bytes)} free",
        ),
        Finding(
            "governor",
            "absent" if slow else "ok",
            f"{health.governor}: RTF varies; `cpupower frequency-set -g performance` on the board"
            if slow
            else health.governor or "the board does not say",
        ),
        Finding(
            "temperature",
            "absent" if hot else "ok",
            f"{health.celsius:.0f} °C{', it slows down when hot: let it cool' if hot else ''}"
            if health.celsius is not None
            else "the board does not say",
        ),
        Finding(
            "clocks",
            "absent" if health.throttled else "ok",
            f"{health.throttled}: a run now is marked as throttled" if health.throttled else "nothing is held back",
        ),
        Finding(
            "clock",
            "absent" if abs(skew) > SKEW_S else "ok",
            f"{skew:+.0f} s from ours: `timedatectl set-ntp true` on the board" if abs(skew) > SKEW_S else "as ours",
        ),
    ]


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
