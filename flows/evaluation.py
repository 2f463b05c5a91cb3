"""Speech heard by a binary of a family on a target's board: the one way in which flows evaluate."""

from typing import Any

from nightjar.boards.ref import BoardRef
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import Plugin, plugin
from nightjar.plugins.target import session_of
from tasks.evaluate import evaluate
from tasks.hypotheses import EvaluateOptions


def hear(
    family: str,
    target: Plugin,
    board: BoardRef,
    *,
    binary: Any,
    speech: Any,
    reference: Any = None,
    options: EvaluateOptions,
    label: str,
) -> Any:
    """Evaluate a binary on a board; the tokens of `reference`, another evaluation, measure agreement."""
    return evaluate(
        binary=binary,
        speech=speech,
        session=session_of(plugin("models", family, "decode"), target, board),
        words=plugin("models", family, "tokens"),
        board=board,
        reference=reference,
        options=options,
        label=label,
    )


def hear_here(family: str, host: Plugin, **heard: Any) -> Any:
    """Evaluate on this machine: the float graphs, mostly."""
    return hear(family, host, board_of(host, "local"), **heard)
