"""Which board a target runs on, and whether the board fits."""

import contextlib
import importlib
import logging
from types import ModuleType

from nightjar.boards.board import BoardFacts, LocalBoard
from nightjar.boards.config import RESERVED, BoardAddress, boards_file, find_board
from nightjar.boards.ref import BoardRef
from nightjar.device.adb import devices
from nightjar.errors import BadOptions, BoardMissing, ToolchainMissing
from nightjar.plugins.registry import Plugin
from nightjar.plugins.target import TOOLCHAIN_TIERS, probe_of
from nightjar.store.fingerprint import module_file
from nightjar.toolchains.environment import pinned_versions, requirements_file, toolchain

log = logging.getLogger(__name__)

PYTHON = (3, 10)  # the session's syntax


def board_of(target: Plugin, alias: str | None) -> BoardRef:
    """Name the board a target's binaries run on, by default the best that needs no hardware.

    Raises BoardMissing for a board this target does not have or whose runtime is absent, ToolchainMissing for the
    simulator of an SDK that is not installed.
    """
    module = target.load()
    alias = alias or module.DEFAULT_BOARD
    if "," in alias:
        return _group(target, alias)
    if alias not in module.TIERS:
        return _remote(target, alias)
    tier = module.TIERS[alias]
    if tier in TOOLCHAIN_TIERS and target.tools():
        versions = toolchain(module.NAME).versions()
        facts = LocalBoard().facts(()).model_copy(update={"python": versions.pop("python"), "runtimes": versions})
        return BoardRef(alias=alias, tier=tier, facts=facts, toolchain=module.NAME)
    facts = LocalBoard().facts(module.RUNTIMES, probe_of(target))
    if absent := missing_runtimes(module, facts):
        raise BoardMissing(
            f"this machine has no {', '.join(absent)}, which runs {module.NAME} on board {alias!r}; "
            f"run this on the board itself, or pass --board with another of {', '.join(module.TIERS)}"
        )
    check_preflight(target, alias, facts)
    return BoardRef(alias=alias, tier=tier, facts=facts)


def board_of_program(target: Plugin, alias: str | None) -> BoardRef:
    """Name the board that a program of its own runs on, by default this machine; it needs no runtime of ours."""
    module = target.load()
    if alias in (None, "local") and "local" in module.TIERS:
        return BoardRef(alias="local", tier=module.TIERS["local"], facts=LocalBoard().facts((), probe_of(target)))
    _, facts = _visited(target, alias or "local", ())
    return BoardRef(alias=str(alias), tier=module.TIERS["local"], facts=facts, remote=True)


def _remote(target: Plugin, alias: str) -> BoardRef:
    """Name a board behind ssh, which has the tier of the target's own machine; asks it what it is."""
    module = target.load()
    reach = _reached(target, alias)
    if reach.entry.adb:
        return _by_adb(target, alias, reach.entry.adb)
    reach, facts = _visited(target, alias, module.RUNTIMES)
    if tuple(map(int, facts.python.split(".")[:2])) < PYTHON:
        raise BoardMissing(
            f"board {alias} has Python {facts.python} and a session needs {PYTHON[0]}.{PYTHON[1]} or later: install it "
            f"there, and give its path as python in {boards_file()}"
        )
    if absent := missing_runtimes(module, facts):
        raise BoardMissing(
            f"board {alias} has no {', '.join(absent)}, which runs {module.NAME}: install it there (a Python package "
            f"for {reach.entry.python}), then `nightjar board check {alias} --target {module.NAME}`"
        )
    check_preflight(target, alias, facts)
    return BoardRef(alias=alias, tier=module.TIERS["local"], facts=facts, remote=True)


def _group(target: Plugin, aliases: str) -> BoardRef:
    """Name boards of a kind that share the work; who does not answer is left out while another does."""
    found: list[BoardRef] = []
    silent: BoardMissing | None = None
    names = aliases.split(",")
    if len(set(names)) < len(names):
        raise BadOptions(f"--board {aliases} names a board twice: give each once")
    for alias in names:
        find_board(alias)  # a name that is none is refused, whoever answers
        try:
            found.append(_remote(target, alias))
        except BoardMissing as error:
            log.warning("%s; going on without it", error)
            silent = error
    if silent is not None and not found:
        raise silent
    first, *others = found
    for other in others:
        if differing := _differences(first.facts, other.facts):
            raise BadOptions(
                f"boards {first.alias} and {other.alias} are not of a kind ({differing}): share a run between boards "
                "that agree, or pass --board with one of them"
            )
    return first.model_copy(update={"alias": ",".join(each.alias for each in found)})


def _differences(one: BoardFacts, other: BoardFacts) -> str:
    said, theirs = ({"soc": f.soc, "Python": f.python, **f.runtimes} for f in (one, other))
    names = [name for name in said | theirs if said.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {said.get(name, 'absent')} and {theirs.get(name, 'absent')}" for name in names)


def _by_adb(target: Plugin, alias: str, serial: str) -> BoardRef:
    """Name a device that adb reaches, and ask it what it is."""
    module, way = target.load(), f"{target.module}.adb"
    if module_file(way) is None:
        raise BoardMissing(
            f"board {alias} is reached by adb, and target {module.NAME} has no adb.py: pass --board with another"
        )
    try:
        if serial not in (there := devices()):
            raise BoardMissing(
                f"adb has no device {serial} for board {alias}; it has {', '.join(there) or 'none'}: "
                "connect it, allow this computer on its screen, then look at `adb devices`"
            )
        said = importlib.import_module(way).versions(serial)
    except RuntimeError as error:
        raise BoardMissing(f"board {alias} does not answer ({error}): look at `adb devices`") from error
    here = LocalBoard().facts(())
    runtimes = {name: version for name, version in said.items() if name != "soc"}
    facts = here.model_copy(update={"soc": said["soc"], "runtimes": {**here.runtimes, **runtimes}})
    if absent := missing_runtimes(module, facts):
        raise BoardMissing(f"board {alias} has no {', '.join(absent)}, which runs {module.NAME}: install it there")
    check_preflight(target, alias, facts)
    return BoardRef(alias=alias, tier=module.TIERS["local"], facts=facts, adb=serial, runner=way)


def _reached(target: Plugin, alias: str) -> BoardAddress:
    """Find a board; raises BoardMissing for one that is not this target's."""
    module = target.load()
    if "local" not in module.TIERS or alias in RESERVED:
        raise BoardMissing(f"target {module.NAME} has no board {alias!r}; have {', '.join(module.TIERS)}: pass --board")
    reach = find_board(alias)
    if reach.entry.target not in (None, module.NAME):
        raise BoardMissing(
            f"board {alias} is for target {reach.entry.target}, as {boards_file()} says, and not for {module.NAME}: "
            "pass --target or --board"
        )
    return reach


def _visited(target: Plugin, alias: str, runtimes: tuple[str, ...]) -> tuple[BoardAddress, BoardFacts]:
    """Ask a board behind ssh what it is; raises BoardMissing for one that is not this target's."""
    reach = _reached(target, alias)
    from nightjar.boards.ssh import SshBoard  # fabric, only when a board is used

    with SshBoard(reach) as board:
        return reach, board.facts(runtimes, probe_of(target))


def missing_runtimes(module: ModuleType, facts: BoardFacts) -> list[str]:
    """List what a session of this target needs and the board has not."""
    return [name for name in ("numpy", *module.RUNTIMES) if facts.runtimes.get(name, "absent") == "absent"]


def preflight_findings(target: Plugin, facts: BoardFacts) -> list[tuple[str, str]]:
    """List what stands against running this target's files on a board: (`refuse` or `warn`, why)."""
    if module_file(f"{target.module}.preflight") is None:
        return []
    name = target.load().NAME
    made_by = pinned_versions(requirements_file(name))
    with contextlib.suppress(ToolchainMissing):  # what only the vendor gives is no pin, and perhaps not here
        made_by |= toolchain(name).versions()
    return list(importlib.import_module(f"{target.module}.preflight").fit(made_by, facts.runtimes))


def check_preflight(target: Plugin, alias: str, facts: BoardFacts) -> None:
    """Warn of what stands against a run on a board; raises BoardMissing where it refuses."""
    for level, message in preflight_findings(target, facts):
        if level == "refuse":
            raise BoardMissing(f"board {alias} does not run this target's files: {message}")
        log.warning("board %s: %s", alias, message)
