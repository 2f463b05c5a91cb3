"""What the flow asks of a target's folder, whichever target it is.

A target is a module `targets/<name>/__init__.py` with

    NAME, TIERS {board: tier}, DEFAULT_BOARD, RUNTIMES (what runs on the board; their versions enter the key)
    Options                                    frozen pydantic, with `precision`
    recipe(model) -> Recipe
    compile(graphs, calibration, options, out)  and, where it goes on after a failure, work: a folder that stays
    RUNNERS                                    other targets whose runners run some of its parts; none by default
    INTEGERS_ONLY                              tiers on which nothing computes in float; none by default

and `runner.py`, the one file that runs a part on the board. A target whose boards have more to say than RUNTIMES adds
`preflight.py`, standard library only: versions() is asked on the board, fit(made_by, versions) says what stands against
a run.

What stands in for a vendor's SDK is a target of the same contract in the target's folder, `targets/<name>/stand_in/`,
called NAME "<name>.stand_in", with one board, `stand-in`. It is what runs where that board is asked for, and nowhere
else.
"""

import contextlib
import importlib
import logging
from types import ModuleType
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from nightjar.adb import devices
from nightjar.board import BoardFacts, BoardRef, LocalBoard, runner_module
from nightjar.boards import OWN, Reach, boards_file, find_board
from nightjar.closure import module_file
from nightjar.errors import BadOptions, BoardMissing, ToolchainMissing
from nightjar.plugins import Plugin, plugin
from nightjar.toolchain import pinned, requirements_of, toolchain

log = logging.getLogger(__name__)

PYTHON = (3, 10)  # the session's syntax
STAND_IN = "stand-in"  # the board, and the tier of all that it gives
INSIDE = ("vendor-simulator", STAND_IN)  # tiers that run in the toolchain's environment, where the target has one


def target_of(name: str, board: str | None) -> Plugin:
    """Return the target that a request means: the folder of this name or, on board `stand-in`, what stands in for it.

    Raises UnknownName where there is no such folder, BoardMissing where nothing stands in.
    """
    found = plugin("targets", name)
    if board != STAND_IN:
        return found
    if module_file(f"{found.module}.stand_in") is None:
        boards = ", ".join(found.load().TIERS)
        raise BoardMissing(f"nothing stands in for target {name}; it has board {boards}: pass --board with one of them")
    return Plugin(module=f"{found.module}.stand_in")


def linter_of(name: str) -> Plugin | None:
    """Return what looks at graphs before they are compiled for a target, None where the target cannot tell."""
    found = plugin("targets", name)
    return Plugin(module=f"{found.module}.lint") if module_file(f"{found.module}.lint") else None


def boards_of(name: str) -> dict[str, str]:
    """Return the boards of a target by name, with the tier of each; its stand-in comes last."""
    tiers: dict[str, str] = dict(plugin("targets", name).load().TIERS)
    return tiers | ({STAND_IN: STAND_IN} if module_file(f"targets.{name}.stand_in") else {})


def make_options(
    target: Plugin, precision: str, float_nodes: tuple[str, ...] = (), chosen: tuple[str, ...] = ()
) -> BaseModel:
    """Make a target's options; chosen: `name=value` of those that are the target's own.

    Raises BadOptions when it does not build this precision, keeps no nodes float, or does not take what was chosen.
    """
    module = target.load()
    if float_nodes and "float_nodes" not in module.Options.model_fields:
        raise BadOptions(f"target {module.NAME} has no say over single nodes: leave out --float-nodes")
    given: dict[str, Any] = {"precision": precision, **_chosen(module, chosen)}
    if float_nodes:
        given["float_nodes"] = float_nodes
    try:
        options: BaseModel = module.Options(**given)  # it reads numbers and yes or no from text
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if name in ("", "precision"):
            raise BadOptions(
                f"target {module.NAME} does not build --precision {precision}: {first['msg']}; see `nightjar targets`"
            ) from error
        raise BadOptions(
            f"target {module.NAME} is not built with {name} {first['input']}: {first['msg']}; its README.md says what "
            "it may be"
        ) from error
    return options


def _chosen(module: ModuleType, entries: tuple[str, ...]) -> dict[str, Any]:
    """Read `name=value` entries by the fields of a target's options; many values are parted by commas."""
    fields: dict[str, Any] = module.Options.model_fields
    own = sorted(fields.keys() - {"precision", "float_nodes"})
    given: dict[str, Any] = {}
    for entry in entries:
        name, said, value = entry.partition("=")
        if not said or name not in own:
            raise BadOptions(
                f"target {module.NAME} takes no --target-options {entry!r}: give NAME=VALUE with a NAME of "
                f"{', '.join(own) or 'none: leave it out'}"
            )
        many = get_origin(fields[name].annotation) is tuple
        given[name] = [each for each in value.split(",") if each] if many else value
    return given


def computes_float(target: Plugin, board: BoardRef) -> bool:
    """Say whether a target's float binary runs on a board: some NPUs compute with integers alone."""
    return board.tier not in getattr(target.load(), "INTEGERS_ONLY", ())


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
    if tier in INSIDE and target.tools():
        versions = toolchain(module.NAME).versions()
        facts = LocalBoard().facts(()).model_copy(update={"python": versions.pop("python"), "runtimes": versions})
        return BoardRef(alias=alias, tier=tier, facts=facts, toolchain=module.NAME)
    facts = LocalBoard().facts(module.RUNTIMES, probe_of(target))
    if absent := absent_of(module, facts):
        raise BoardMissing(
            f"this machine has no {', '.join(absent)}, which runs {module.NAME} on board {alias!r}; "
            f"run this on the board itself, or pass --board with another of {', '.join(module.TIERS)}"
        )
    preflight(target, alias, facts)
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
    if absent := absent_of(module, facts):
        raise BoardMissing(
            f"board {alias} has no {', '.join(absent)}, which runs {module.NAME}: install it there (a Python package "
            f"for {reach.entry.python}), then `nightjar board check {alias} --target {module.NAME}`"
        )
    preflight(target, alias, facts)
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
    if absent := absent_of(module, facts):
        raise BoardMissing(f"board {alias} has no {', '.join(absent)}, which runs {module.NAME}: install it there")
    preflight(target, alias, facts)
    return BoardRef(alias=alias, tier=module.TIERS["local"], facts=facts, adb=serial, runner=way)


def _reached(target: Plugin, alias: str) -> Reach:
    """Find a board; raises BoardMissing for one that is not this target's."""
    module = target.load()
    if "local" not in module.TIERS or alias in OWN:
        raise BoardMissing(f"target {module.NAME} has no board {alias!r}; have {', '.join(module.TIERS)}: pass --board")
    reach = find_board(alias)
    if reach.entry.target not in (None, module.NAME):
        raise BoardMissing(
            f"board {alias} is for target {reach.entry.target}, as {boards_file()} says, and not for {module.NAME}: "
            "pass --target or --board"
        )
    return reach


def _visited(target: Plugin, alias: str, runtimes: tuple[str, ...]) -> tuple[Reach, BoardFacts]:
    """Ask a board behind ssh what it is; raises BoardMissing for one that is not this target's."""
    reach = _reached(target, alias)
    from nightjar.ssh import SshBoard  # fabric, only when a board is used

    with SshBoard(reach) as board:
        return reach, board.facts(runtimes, probe_of(target))


def absent_of(module: ModuleType, facts: BoardFacts) -> list[str]:
    """List what a session of this target needs and the board has not."""
    return [name for name in ("numpy", *module.RUNTIMES) if facts.runtimes.get(name, "absent") == "absent"]


def probe_of(target: Plugin) -> str:
    """Return the source that asks a board for versions of the target's own, empty where it has none."""
    path = module_file(f"{target.module}.preflight")
    return path.read_text(encoding="utf-8") if path else ""


def findings_of(target: Plugin, facts: BoardFacts) -> list[tuple[str, str]]:
    """List what stands against running this target's files on a board: (`refuse` or `warn`, why)."""
    if module_file(f"{target.module}.preflight") is None:
        return []
    name = target.load().NAME
    made_by = pinned(requirements_of(name))
    with contextlib.suppress(ToolchainMissing):  # what only the vendor gives is no pin, and perhaps not here
        made_by |= toolchain(name).versions()
    return list(importlib.import_module(f"{target.module}.preflight").fit(made_by, facts.runtimes))


def preflight(target: Plugin, alias: str, facts: BoardFacts) -> None:
    """Warn of what stands against a run on a board; raises BoardMissing where it refuses."""
    for level, message in findings_of(target, facts):
        if level == "refuse":
            raise BoardMissing(f"board {alias} does not run this target's files: {message}")
        log.warning("board %s: %s", alias, message)


def session_of(decode: Plugin, target: Plugin, board: BoardRef) -> tuple[Plugin, ...]:
    """List the modules that travel to the board, so that their code enters the key."""
    own = runner_module(board) if board.toolchain or board.runner else f"{target.module}.runner"
    others = (f"targets.{name}.runner" for name in getattr(target.load(), "RUNNERS", ()))
    return decode, *(Plugin(module=module) for module in (own, *others))
