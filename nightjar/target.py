"""What the flow asks of a target's folder, whichever target it is.

A target is a module `targets/<name>/__init__.py` with

    NAME, TIERS {board: tier}, DEFAULT_BOARD, RUNTIMES (what runs on the board; their versions enter the key)
    Options                                    frozen pydantic, with `precision`
    recipe(model) -> Recipe
    compile(graphs, calibration, options, out)

and `runner.py`, the one file that runs a part on the board.
"""

from pydantic import BaseModel, ValidationError

from nightjar.board import BoardRef, LocalBoard, runner_module
from nightjar.errors import BadOptions, BoardMissing
from nightjar.plugins import Plugin
from nightjar.toolchain import toolchain


def make_options(target: Plugin, precision: str, float_nodes: tuple[str, ...] = ()) -> BaseModel:
    """Make a target's options; raises BadOptions when it does not build this precision or keeps no nodes float."""
    module = target.load()
    if float_nodes and "float_nodes" not in module.Options.model_fields:
        raise BadOptions(f"target {module.NAME} has no say over single nodes: leave out --float-nodes")
    kept = {"float_nodes": float_nodes} if float_nodes else {}
    try:
        options: BaseModel = module.Options(precision=precision, **kept)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadOptions(
            f"target {module.NAME} does not build --precision {precision}: {reason}; see `nightjar targets`"
        ) from error
    return options


def board_of(target: Plugin, alias: str | None) -> BoardRef:
    """Name the board a target's binaries run on, by default the best that needs no hardware.

    Raises BoardMissing for a board this target does not have or whose runtime is absent, ToolchainMissing for the
    simulator of an SDK that is not installed.
    """
    module = target.load()
    alias = alias or module.DEFAULT_BOARD
    if alias not in module.TIERS:
        raise BoardMissing(f"target {module.NAME} has no board {alias!r}; have {', '.join(module.TIERS)}: pass --board")
    tier = module.TIERS[alias]
    if tier == "vendor-simulator":
        versions = toolchain(module.NAME).versions()
        facts = LocalBoard().facts(()).model_copy(update={"python": versions.pop("python"), "runtimes": versions})
        return BoardRef(alias=alias, tier=tier, facts=facts, toolchain=module.NAME)
    facts = LocalBoard().facts(module.RUNTIMES)
    if absent := [runtime for runtime, found in facts.runtimes.items() if found == "absent"]:
        raise BoardMissing(
            f"this machine has no {', '.join(absent)}, which runs {module.NAME} on board {alias!r}; "
            f"run this on the board itself, or pass --board with another of {', '.join(module.TIERS)}"
        )
    return BoardRef(alias=alias, tier=tier, facts=facts)


def session_of(decode: Plugin, target: Plugin, board: BoardRef) -> tuple[Plugin, ...]:
    """List the modules that travel to the board, so that their code enters the key."""
    return decode, Plugin(module=runner_module(board) if board.toolchain else f"{target.module}.runner")
