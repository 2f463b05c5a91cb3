"""The end of every graph: the same speech through stock, float graphs and binary; one verdict, one report."""

from typing import Any

from flows.evaluation import evaluate_binary, evaluate_reference
from flows.prepare import Prepared
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import session_of
from nightjar.request import EvaluateRequest, PortRequest
from nightjar.scoring.verdict import Budgets
from tasks.drift import DriftOptions, drift
from tasks.hypotheses import EvaluateOptions
from tasks.judge import judge
from tasks.publish import publish
from tasks.report import report
from tasks.stage import Pending, current_run
from tasks.stock import stock


def conclude(
    request: PortRequest | EvaluateRequest,
    prepared: Prepared,
    *,
    binary: Any,
    precision: str,
    calibration: Any = None,
    frontier: Any = None,
    hypotheses: Any = None,
    tier: str = "",
) -> dict[str, Any]:
    """Evaluate stock, the float graphs and the binary; judge, report and publish.

    binary, calibration, frontier, hypotheses: artifacts, or what a plan has in their place. The results are empty when
    planning. hypotheses: what a board's own program gave, which ran on `tier`; else the binary is evaluated.
    """
    speech, family = prepared.test_speech, plugin("models", prepared.family).load()
    task = request.task or "transcribe"
    options = EvaluateOptions(language=request.language, task=task, limit=request.limit, long=request.long, probes=True)
    stock_module = plugin("models", prepared.family, "stock")
    stock_hypotheses = stock(checkpoint=prepared.checkpoint, speech=speech, model=stock_module, options=options)
    expected = evaluate_reference(prepared, speech=speech, options=options, label="float")
    drift_result = None
    if hypotheses is None:
        tier = prepared.board.tier
        hypotheses = evaluate_binary(
            prepared, binary, speech=speech, options=options, label="binary", reference=expected
        )
        if family.STREAMS and request.drift != 0:
            seconds = {"seconds": request.drift} if request.drift else {}
            drift_result = drift(
                binary=binary,
                reference=prepared.reference,
                speech=speech,
                family=plugin("models", prepared.family, "stream"),
                session=(
                    *session_of(prepared.decode, prepared.host, prepared.host_board),
                    *session_of(prepared.decode, prepared.target, prepared.board),
                ),
                board=prepared.board,
                host=prepared.host_board,
                options=DriftOptions(**seconds, language=request.language),
            )
    verdict = judge(
        stock=stock_hypotheses,
        expected=expected,
        obtained=hypotheses,
        drift=drift_result,
        language=request.text_language,
        tier=tier,
        budgets=Budgets(max_delta_wer=request.max_delta_wer),
    )
    page = report(
        verdict=verdict,
        graphs=prepared.graphs,
        binary=binary,
        obtained=hypotheses,
        drift=drift_result,
        calibration=calibration,
        frontier=frontier,
        stock=family.STOCK,
        model=request.model,
        precision=precision,
    )
    return {} if isinstance(page, Pending) else publish(request, page, current_run().outcomes)
