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

import logging
from types import ModuleType
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from nightjar.boards.ref import BoardRef, runner_module
from nightjar.errors import BadOptions, BoardMissing
from nightjar.plugins.registry import Plugin, plugin
from nightjar.store.fingerprint import module_file

log = logging.getLogger(__name__)

STAND_IN = "stand-in"  # the board, and the tier of all that it gives
# Tiers that run in the environment of the toolchain, where the target has one.
TOOLCHAIN_TIERS = ("vendor-simulator", STAND_IN)


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


def probe_of(target: Plugin) -> str:
    """Return the source that asks a board for versions of the target's own, empty where it has none."""
    path = module_file(f"{target.module}.preflight")
    return path.read_text(encoding="utf-8") if path else ""


def session_of(decode: Plugin, target: Plugin, board: BoardRef) -> tuple[Plugin, ...]:
    """List the modules that travel to the board, so that their code enters the key."""
    own = runner_module(board) if board.toolchain or board.runner else f"{target.module}.runner"
    others = (f"targets.{name}.runner" for name in getattr(target.load(), "RUNNERS", ()))
    return decode, *(Plugin(module=module) for module in (own, *others))
