"""What flows read of a target: a module `targets/<name>/__init__.py` of the contract in docs/add-a-target.md.

The stand-in for a vendor's SDK is a target of the same contract in `targets/<name>/stand_in/`, with NAME
"<name>.stand_in" and one board, `stand-in`. It runs only where a request names that board.
"""

from types import ModuleType
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from nightjar.boards.ref import BoardRef, runner_module
from nightjar.errors import BadOptions, BoardMissing
from nightjar.plugins.registry import Plugin, plugin
from nightjar.quantization.npu_traits import NpuTraits
from nightjar.store.fingerprint import module_file

STAND_IN = "stand-in"  # a board, and the tier of its results
# Tiers that run in the environment of the toolchain, where the target has one.
TOOLCHAIN_TIERS = ("vendor-simulator", STAND_IN)


def target_of(name: str, board: str | None) -> Plugin:
    """Return a request's target, or its stand-in on board `stand-in`; raises UnknownName and BoardMissing."""
    found = plugin("targets", name)
    if board != STAND_IN:
        return found
    if module_file(f"{found.module}.stand_in") is None:
        boards = ", ".join(found.load().TIERS)
        raise BoardMissing(f"target {name} has no stand-in; it has board {boards}: pass --board with one of them")
    return Plugin(module=f"{found.module}.stand_in")


def traits_of(target: Plugin) -> NpuTraits:
    """Return a target's TRAITS (nightjar/quantization/npu_traits.py), the defaults where it has none."""
    traits: NpuTraits = getattr(target.load(), "TRAITS", NpuTraits())
    return traits


def linter_of(name: str) -> Plugin | None:
    """Return the module that checks graphs before they are compiled for a target, None where the target has none."""
    found = plugin("targets", name)
    return Plugin(module=f"{found.module}.lint") if module_file(f"{found.module}.lint") else None


def boards_of(name: str) -> dict[str, str]:
    """Return the boards of a target by name, with the tier of each; its stand-in comes last."""
    tiers: dict[str, str] = dict(plugin("targets", name).load().TIERS)
    return tiers | ({STAND_IN: STAND_IN} if module_file(f"targets.{name}.stand_in") else {})


def tier_of(name: str, board: str | None) -> str:
    """Return the tier of a target's board by its name alone; boards behind ssh or adb have that of `local`."""
    module = target_of(name, board).load()
    tiers: dict[str, str] = module.TIERS
    return tiers.get(board or module.DEFAULT_BOARD) or tiers.get("local", "device")


def make_options(
    target: Plugin, precision: str, float_nodes: tuple[str, ...] = (), target_options: tuple[str, ...] = ()
) -> BaseModel:
    """Make a target's options; target_options: `name=value` of those that only this target has.

    Raises BadOptions for a precision, float nodes or a value that the target does not take.
    """
    module = target.load()
    if float_nodes and "float_nodes" not in module.Options.model_fields:
        raise BadOptions(f"target {module.NAME} cannot keep single nodes in float: remove --float-nodes")
    given: dict[str, Any] = {"precision": precision, **_own_options(module, target_options)}
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
            f"target {module.NAME} is not built with {name} {first['input']}: {first['msg']}; its README.md lists "
            "what is allowed"
        ) from error
    return options


def _own_options(module: ModuleType, entries: tuple[str, ...]) -> dict[str, Any]:
    """Parse `name=value` entries by the fields of a target's options; commas separate several values."""
    fields: dict[str, Any] = module.Options.model_fields
    own = sorted(fields.keys() - {"precision", "float_nodes"})
    given: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or name not in own:
            raise BadOptions(
                f"target {module.NAME} takes no --target-options {entry!r}: give NAME=VALUE with a NAME of "
                f"{', '.join(own) or 'none: remove it'}"
            )
        many = get_origin(fields[name].annotation) is tuple
        given[name] = [each for each in value.split(",") if each] if many else value
    return given


def computes_float(target: Plugin, board: BoardRef) -> bool:
    """Tell whether a target's float binary runs on a board: some NPUs compute with integers only."""
    return board.tier not in getattr(target.load(), "INTEGERS_ONLY", ())


def probe_of(target: Plugin) -> str:
    """Return the source that reads the versions of a target's runtime on a board, empty where the target has none."""
    path = module_file(f"{target.module}.preflight")
    return path.read_text(encoding="utf-8") if path else ""


def session_of(decode: Plugin, target: Plugin, board: BoardRef) -> tuple[Plugin, ...]:
    """List the modules that travel to the board; their code enters the stage's key."""
    own = runner_module(board) if board.toolchain or board.runner else f"{target.module}.runner"
    others = (f"targets.{name}.runner" for name in getattr(target.load(), "RUNNERS", ()))
    return decode, *(Plugin(module=module) for module in (own, *others))
