"""The end of every graph: the same speech heard three times, one verdict, one page."""

from typing import Any

from flows.evaluation import hear, hear_here
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import Plugin, plugin
from nightjar.plugins.target import session_of, target_of
from nightjar.request import PortRequest
from nightjar.scoring.verdict import Budgets
from nightjar.store.artifact import Source
from tasks.drift import DriftOptions, drift
from tasks.hypotheses import EvaluateOptions
from tasks.judge import judge
from tasks.publish import publish
from tasks.report import report
from tasks.stage import Pending, current_run
from tasks.stock import stock


def judged(
    request: PortRequest,
    *,
    family: str,
    host: Plugin,
    checkpoint: Source,
    speech: Source,
    graphs: Any,
    reference: Any,
    binary: Any,
    calibration: Any,
    frontier: Any = None,
    obtained: Any = None,
    tier: str = "device",
) -> dict[str, Any]:
    """Evaluate stock, the float graphs (`reference`, on `host`) and the binary; judge, report and publish.

    graphs, reference, binary, calibration: artifacts, or what a plan has in their place. The results are empty when
    planning. obtained: hypotheses that are there already, of a board's own program, and the tier it ran on.
    """
    target = target_of(request.target, request.board)
    board = board_of(target, request.board) if obtained is None else None
    options = EvaluateOptions(language=request.language, limit=request.limit, long=request.long)

    upstream = stock(checkpoint=checkpoint, speech=speech, model=plugin("models", family, "stock"), options=options)
    asked: dict[str, Any] = {"speech": speech, "options": options}
    expected = hear_here(family, host, binary=reference, label="float", **asked)
    if board is not None:
        obtained = hear(family, target, board, binary=binary, reference=expected, label="binary", **asked)
    drifted = None
    if board is not None and plugin("models", family).load().STREAMS and request.drift != 0:
        decode, here = plugin("models", family, "decode"), board_of(host, "local")
        drifted = drift(
            binary=binary,
            reference=reference,
            speech=speech,
            family=plugin("models", family, "stream"),
            session=(*session_of(decode, host, here), *session_of(decode, target, board)),
            board=board,
            host=here,
            options=DriftOptions(**({"seconds": request.drift} if request.drift else {}), language=request.language),
        )
    verdict = judge(
        stock=upstream,
        expected=expected,
        obtained=obtained,
        drift=drifted,
        language=request.language,
        tier=board.tier if board is not None else tier,
        budgets=Budgets(max_delta_wer=request.max_delta_wer),
    )
    page = report(
        verdict=verdict,
        graphs=graphs,
        binary=binary,
        obtained=obtained,
        drift=drifted,
        calibration=calibration,
        frontier=frontier,
        stock=plugin("models", family).load().STOCK,
        model=request.model,
        precision=request.precision,
    )
    return {} if isinstance(page, Pending) else publish(request, page, current_run().outcomes)
