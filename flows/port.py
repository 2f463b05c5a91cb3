"""Port one model to one target: the graph, in the order of its edges.

checkpoint ─export─▶ graphs ─build(float)─▶ binary ─harvest─▶ hidden ─calibrate─▶ calibration
graphs + calibration ─build─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
"""

from typing import Any

from prefect import flow

from flows.judged import judged
from nightjar.artifact import Source
from nightjar.plugins import plugin
from nightjar.recipe import Recipe
from nightjar.request import PortRequest, checkpoint_source, model_family, speech_sources
from nightjar.target import board_of, make_options, session_of
from tasks.build import build
from tasks.calibrate import calibrate
from tasks.export import export
from tasks.harvest import harvest
from tasks.stage import joining


@flow(name="port", flow_run_name="port-{request.model}-{request.target}-{request.precision}")
def port(request: PortRequest) -> dict[str, Any]:
    """Export, harvest, calibrate, build, evaluate, judge, report; every step is taken from the store if it can be."""
    with joining(request.refresh):
        family = model_family(request)
        target = plugin("targets", request.target)
        recipe = recipe_for(request, target.load().recipe(family))
        wanted = make_options(target, request.precision, request.float_nodes)
        board_of(target, request.board)  # what is missing is said before anything runs
        checkpoint = checkpoint_source(request, family)
        calibration_speech, test_speech = speech_sources(request)
        host = plugin("targets", recipe.graph_format)  # the float graphs, as they are, on this machine

        exporter = plugin("models", family, "export")
        graphs = export(checkpoint=checkpoint, model=exporter, recipe=recipe, clamp=request.window is None)
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
            options=wanted,
            label="binary",
        )

        return judged(
            request,
            family=family,
            host=host,
            checkpoint=checkpoint,
            speech=test_speech,
            graphs=graphs,
            reference=reference,
            binary=binary,
            calibration=calibration,
        )


def calibrated(request: PortRequest, family: str, floating: Any, reference: Any, speech: Source) -> Any:
    """Harvest from the `floating` binary where the target runs and calibrate on the host's `reference` graphs."""
    target = plugin("targets", request.target)
    decode, board = plugin("models", family, "decode"), board_of(target, request.board)
    host = plugin("targets", target.load().recipe(family).graph_format)
    hidden = harvest(
        binary=floating,
        speech=speech,
        session=session_of(decode, target, board),
        board=board,
        samples=request.calibration_samples,
        seed=0,
    )
    return calibrate(
        reference=reference,
        hidden=hidden,
        speech=speech,
        model=plugin("models", family, "calibrate"),
        runner=plugin("targets", host.load().NAME, "runner"),
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
