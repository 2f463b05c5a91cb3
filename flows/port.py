"""Port one model to one target: the graph, in the order of its edges.

checkpoint ─export─▶ graphs ─build(float)─▶ binary ─harvest─▶ hidden ─calibrate─▶ calibration
graphs + calibration ─build─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
"""

from typing import Any

from prefect import flow

from nightjar.artifact import Source
from nightjar.plugins import plugin
from nightjar.recipe import Recipe
from nightjar.request import PortRequest, checkpoint_source, model_family, speech_sources
from nightjar.target import board_of, make_options, session_of
from nightjar.verdict import Budgets
from tasks.build import build
from tasks.calibrate import calibrate
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.harvest import harvest
from tasks.hypotheses import EvaluateOptions
from tasks.judge import judge
from tasks.publish import publish
from tasks.report import report
from tasks.stage import Pending, joining
from tasks.stock import stock


@flow(name="port", flow_run_name="port-{request.model}-{request.target}-{request.precision}")
def port(request: PortRequest) -> dict[str, Any]:
    """Export, harvest, calibrate, build, evaluate, judge, report; every step is taken from the store if it can be."""
    with joining(request.refresh) as run:
        family = model_family(request)
        target = plugin("targets", request.target)
        recipe = recipe_for(request, target.load().recipe(family))
        checkpoint = checkpoint_source(request, family)
        calibration_speech, test_speech = speech_sources(request)
        board = board_of(target, request.board)
        host = plugin("targets", recipe.graph_format)  # the float graphs, as they are, on this machine
        host_board = board_of(host, "local")
        part = {name: plugin("models", family, name) for name in ("export", "decode", "tokens", "stock")}
        options = EvaluateOptions(language=request.language, limit=request.limit, long=request.long)

        graphs = export(checkpoint=checkpoint, model=part["export"], recipe=recipe, clamp=request.window is None)
        as_they_are = {"graphs": graphs, "calibration": None}
        reference = build(**as_they_are, target=host, options=make_options(host, "fp"), label="reference")
        floating = build(**as_they_are, target=target, options=make_options(target, "fp"), label="float")
        calibration = None
        if request.precision != "fp":
            calibration = calibrated(request, family, floating, reference, calibration_speech)
        binary = build(
            graphs=graphs,
            calibration=calibration,
            target=target,
            options=make_options(target, request.precision, request.float_nodes),
            label="binary",
        )

        upstream = stock(checkpoint=checkpoint, speech=test_speech, model=part["stock"], options=options)
        expected = evaluate(
            binary=reference,
            speech=test_speech,
            session=session_of(part["decode"], host),
            words=part["tokens"],
            board=host_board,
            reference=None,
            options=options,
            label="float",
        )
        obtained = evaluate(
            binary=binary,
            speech=test_speech,
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
            calibration=calibration,
            model=request.model,
            precision=request.precision,
        )
        return {} if isinstance(page, Pending) else publish(request, page, run.outcomes)


def calibrated(request: PortRequest, family: str, floating: Any, reference: Any, speech: Source) -> Any:
    """Harvest from the `floating` binary where the target runs and calibrate on the host's `reference` graphs."""
    target = plugin("targets", request.target)
    decode = plugin("models", family, "decode")
    host = plugin("targets", target.load().recipe(family).graph_format)
    hidden = harvest(
        binary=floating,
        speech=speech,
        session=session_of(decode, target),
        board=board_of(target, request.board),
        samples=request.calibration_samples,
        seed=0,
    )
    return calibrate(
        reference=reference,
        hidden=hidden,
        speech=speech,
        model=plugin("models", family, "calibrate"),
        runner=session_of(decode, host)[1],
        samples=request.calibration_samples,
        seed=0,
        language=request.language,
    )


def recipe_for(request: PortRequest, recipe: Recipe) -> Recipe:
    """Lay what the request asks for over the target's recipe."""
    asked = {
        "window_s": request.window,
        "decoder": request.decoder,
        "positional": request.positional,
        "host_embedding": request.host_embedding,
    }
    return recipe.model_copy(update={name: value for name, value in asked.items() if value is not None})
