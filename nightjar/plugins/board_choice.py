"""Choose the board that runs a target's binaries, and check that it fits."""

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

PYTHON = (3, 10)  # oldest Python that runs a session


def board_of(target: Plugin, alias: str | None) -> BoardRef:
    """Describe the board that a target's binaries run on, by default the best that needs no hardware.

    Asks the board for its facts and runs the target's preflight. Raises BoardMissing for a board that this target does
    not have or that lacks its runtime, ToolchainMissing for the simulator of an SDK that is not installed.
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
    remedy = f"run this on the board itself, or pass --board with another of {', '.join(module.TIERS)}"
    _check(target, alias, facts, "this machine", f" on board {alias!r}; {remedy}")
    return BoardRef(alias=alias, tier=tier, facts=facts)


def board_of_program(target: Plugin, alias: str | None) -> BoardRef:
    """Describe the board that has a program of its own, by default this machine; it needs no runtime of the target."""
    tiers = target.load().TIERS
    if alias in (None, "local") and "local" in tiers:
        return BoardRef(alias="local", tier=tiers["local"], facts=LocalBoard().facts((), probe_of(target)))
    facts = _ssh_facts(target, address_of(target, alias or "local"), ())
    return BoardRef(alias=str(alias), tier=tiers["local"], facts=facts, remote=True)


def _remote(target: Plugin, alias: str) -> BoardRef:
    """Describe a board behind ssh or adb; it has the tier of the target's own machine."""
    module, address = target.load(), address_of(target, alias)
    if address.entry.adb:
        return _by_adb(target, alias, address.entry.adb)
    facts = _ssh_facts(target, address, module.RUNTIMES)
    if tuple(map(int, facts.python.split(".")[:2])) < PYTHON:
        raise BoardMissing(
            f"board {alias} has Python {facts.python} and a session needs {PYTHON[0]}.{PYTHON[1]} or later: install it "
            f"there, and give its path as python in {boards_file()}"
        )
    then = f"`nightjar board check {alias} --target {module.NAME}`"
    remedy = f": install it there (a Python package for {address.entry.python}), then {then}"
    _check(target, alias, facts, f"board {alias}", remedy)
    return BoardRef(alias=alias, tier=module.TIERS["local"], facts=facts, remote=True)


def _group(target: Plugin, aliases: str) -> BoardRef:
    """Describe boards of one kind that share the work; a board that does not answer is left out if another does."""
    boards: list[BoardRef] = []
    failures: list[BoardMissing] = []
    names = aliases.split(",")
    if len(set(names)) < len(names):
        raise BadOptions(f"--board {aliases} names a board twice: give each once")
    for alias in names:
        find_board(alias)  # an unknown name is refused, whichever boards answer
        try:
            boards.append(_remote(target, alias))
        except BoardMissing as error:
            log.warning("%s; going on without it", error)
            failures.append(error)
    if not boards:
        raise failures[-1]
    first, *others = boards
    for other in others:
        one, two = ({"soc": f.soc, "Python": f.python, **f.runtimes} for f in (first.facts, other.facts))
        apart = [name for name in one | two if one.get(name) != two.get(name)]
        if apart:
            values = ", ".join(f"{name} {one.get(name, 'absent')} and {two.get(name, 'absent')}" for name in apart)
            raise BadOptions(
                f"boards {first.alias} and {other.alias} are not of a kind ({values}): share a run between boards "
                "that agree, or pass --board with one of them"
            )
    return first.model_copy(update={"alias": ",".join(each.alias for each in boards)})


def _by_adb(target: Plugin, alias: str, serial: str) -> BoardRef:
    """Describe a device that adb reaches."""
    module, runner = target.load(), f"{target.module}.adb"
    if module_file(runner) is None:
        raise BoardMissing(
            f"board {alias} is reached by adb, and target {module.NAME} has no adb.py: pass --board with another"
        )
    try:
        if serial not in (connected := devices()):
            raise BoardMissing(
                f"adb has no device {serial} for board {alias}; it has {', '.join(connected) or 'none'}: "
                "connect it, allow this computer on its screen, then look at `adb devices`"
            )
        versions = importlib.import_module(runner).versions(serial)
    except RuntimeError as error:
        raise BoardMissing(f"board {alias} does not answer ({error}): look at `adb devices`") from error
    host = LocalBoard().facts(())  # the session runs here
    soc = versions.pop("soc")
    facts = host.model_copy(update={"soc": soc, "runtimes": {**host.runtimes, **versions}})
    _check(target, alias, facts, f"board {alias}", ": install it there")
    return BoardRef(alias=alias, tier=module.TIERS["local"], facts=facts, adb=serial, runner=runner)


def address_of(target: Plugin, alias: str) -> BoardAddress:
    """Find a board; raises BoardMissing for a board of another target."""
    module = target.load()
    if "local" not in module.TIERS or alias in RESERVED:
        raise BoardMissing(f"target {module.NAME} has no board {alias!r}; have {', '.join(module.TIERS)}: pass --board")
    address = find_board(alias)
    if address.entry.target not in (None, module.NAME):
        raise BoardMissing(
            f"board {alias} is for target {address.entry.target} in {boards_file()}, and not for {module.NAME}: "
            "pass --target or --board"
        )
    return address


def _ssh_facts(target: Plugin, address: BoardAddress, runtimes: tuple[str, ...]) -> BoardFacts:
    from nightjar.boards.ssh import SshBoard  # fabric, only when a board is used

    with SshBoard(address) as board:
        return board.facts(runtimes, probe_of(target))


def missing_runtimes(module: ModuleType, facts: BoardFacts) -> list[str]:
    """List what a session of this target needs and the board lacks."""
    return [name for name in ("numpy", *module.RUNTIMES) if facts.runtimes.get(name, "absent") == "absent"]


def preflight_findings(target: Plugin, facts: BoardFacts) -> list[tuple[str, str]]:
    """List why a board may not run this target's files: (`refuse` or `warn`, why)."""
    if module_file(f"{target.module}.preflight") is None:
        return []
    name = target.load().NAME
    made_by = pinned_versions(requirements_file(name))
    with contextlib.suppress(ToolchainMissing):  # a vendor's own package has no pin, and may be absent here
        made_by |= toolchain(name).versions()
    return list(importlib.import_module(f"{target.module}.preflight").fit(made_by, facts.runtimes))


def _check(target: Plugin, alias: str, facts: BoardFacts, where: str, remedy: str) -> None:
    """Raise BoardMissing for a board that lacks what a session needs or that the target's preflight refuses."""
    module = target.load()
    if absent := missing_runtimes(module, facts):
        raise BoardMissing(f"{where} has no {', '.join(absent)}, which runs {module.NAME}{remedy}")
    check_preflight(target, alias, facts)


def check_preflight(target: Plugin, alias: str, facts: BoardFacts) -> None:
    """Log the warnings of a target's preflight; raises BoardMissing where it refuses the board."""
    for level, message in preflight_findings(target, facts):
        if level == "refuse":
            raise BoardMissing(f"board {alias} does not run this target's files: {message}")
        log.warning("board %s: %s", alias, message)
