"""Score files made elsewhere: the end of the port's graph, without what builds.

checkpoint ─export─▶ graphs ─build─▶ float binary ─evaluate─┐
files + graphs ─adopt─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
"""

from typing import Any

from prefect import flow

from flows.port import recipe_for
from nightjar.plugins import plugin
from nightjar.request import EvaluateRequest, checkpoint_source, model_family, speech_source
from nightjar.target import board_of, make_options, session_of
from nightjar.verdict import Budgets
from tasks.adopt import adopt, adopting, given_files, recognise
from tasks.build import build
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.hypotheses import EvaluateOptions
from tasks.judge import judge
from tasks.publish import publish
from tasks.report import report
from tasks.stage import Pending, joining
from tasks.stock import stock

PRECISION = "as given"  # a file does not say how it was made


@flow(name="evaluate", flow_run_name="evaluate-{request.model}-{request.target}")
def evaluate_files(request: EvaluateRequest) -> dict[str, Any]:
    """Export the recipe that the files are of, adopt them, evaluate, judge, report."""
    with joining(request.refresh) as run:
        family = model_family(request)
        target = plugin("targets", request.target)
        taking = adopting(request.target)
        names = ("contract", "export", "decode", "tokens", "stock")
        part = {name: plugin("models", family, name) for name in names}
        files = given_files(request.files)
        given = recognise(files, taking, part["contract"])
        recipe = recipe_for(request, target.load().recipe(family).model_copy(update=given.recipe))
        checkpoint = checkpoint_source(request, family)
        speech = speech_source(request, "test")
        board = board_of(target, request.board)
        host = plugin("targets", recipe.graph_format)
        options = EvaluateOptions(language=request.language, limit=request.limit, long=request.long)

        graphs = export(checkpoint=checkpoint, model=part["export"], recipe=recipe, clamp=True, label="adopted")
        binary = adopt(files=files, graphs=graphs, target=taking, contract=part["contract"])
        reference = build(
            graphs=graphs, calibration=None, target=host, options=make_options(host, "fp"), label="reference"
        )
        upstream = stock(checkpoint=checkpoint, speech=speech, model=part["stock"], options=options)
        expected = evaluate(
            binary=reference,
            speech=speech,
            session=session_of(part["decode"], host),
            words=part["tokens"],
            board=board_of(host, "local"),
            reference=None,
            options=options,
            label="float",
        )
        obtained = evaluate(
            binary=binary,
            speech=speech,
            session=session_of(part["decode"], target),
            words=part["tokens"],
            board=board,
            reference=expected,
            options=options,
            label="binary",
        )
        verdict = judge(
            stock=upstream,
            expected=expected,
            obtained=obtained,
            language=request.language,
            tier=board.tier,
            budgets=Budgets(max_delta_wer=request.max_delta_wer),
        )
        page = report(
            verdict=verdict,
            graphs=graphs,
            binary=binary,
            obtained=obtained,
            calibration=None,
            model=request.model,
            precision=PRECISION,
        )
        if isinstance(page, Pending):
            return {}
        return publish(request.model_copy(update={"precision": PRECISION}), page, run.outcomes)
