"""Evaluate a binary on a board, or the float graphs on this machine: the one way in which flows evaluate."""

from typing import Any

from flows.prepare import Prepared
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import session_of
from tasks.evaluate import evaluate
from tasks.hypotheses import EvaluateOptions


def evaluate_binary(
    prepared: Prepared,
    binary: Any,
    *,
    speech: Any,
    options: EvaluateOptions,
    label: str,
    reference: Any = None,
    on_host: bool = False,
    session: tuple[Any, ...] = (),
    **encoder: Any,
) -> Any:
    """Evaluate a binary on the request's board; the tokens of `reference`, another evaluation, measure agreement.

    session: modules that travel to the board beside those of every session; encoder: another binary, whose encoder
    runs in place of this one's, as `encoder=`.
    """
    target, board = (prepared.host, prepared.host_board) if on_host else (prepared.target, prepared.board)
    return evaluate(
        binary=binary,
        speech=speech,
        session=(*session_of(prepared.decode, target, board), *session),
        words=plugin("models", prepared.family, "tokens"),
        board=board,
        reference=reference,
        options=options,
        label=label,
        **encoder,
    )


def evaluate_reference(prepared: Prepared, *, speech: Any, options: EvaluateOptions, label: str) -> Any:
    """Evaluate the float graphs on this machine."""
    return evaluate_binary(prepared, prepared.reference, speech=speech, options=options, label=label, on_host=True)
