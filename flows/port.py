"""Port one model to one target: the graph, in the order of its edges.

checkpoint ─export─▶ graphs ─build(float)─▶ binary ─harvest─▶ hidden ─calibrate─▶ calibration
graphs + calibration ─build─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
with --precision auto, ─search─▶ plan before the build (flows/precision_search.py)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from prefect import flow
from pydantic import BaseModel

from flows.conclusion import judged
from flows.precision_search import Searched, parameters, searched
from nightjar.errors import BadOptions
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import Plugin, plugin
from nightjar.plugins.resolve import checkpoint_source, model_family, speech_sources
from nightjar.plugins.target import computes_float, make_options, session_of, target_of
from nightjar.request import PortRequest
from nightjar.store.artifact import Source
from tasks.build import build
from tasks.calibrate import calibrate
from tasks.export import export
from tasks.harvest import harvest
from tasks.stage import current_or_new_run


class Prepared(NamedTuple):
    """What every binary of a request is made from."""

    family: str
    target: Plugin
    host: Plugin  # where the float graphs run as they are: this machine
    checkpoint: Source
    calibration_speech: Any
    test_speech: Any
    graphs: Any
    reference: Any  # the float graphs, built for `host`
    floating: Any  # and for the target


@flow(name="port", flow_run_name="port-{request.model}-{request.target}-{request.precision}")
def port(request: PortRequest) -> dict[str, Any]:
    """Export, harvest, calibrate, build, evaluate, judge, report; every step is taken from the store if it can be."""
    with current_or_new_run(request.refresh, request.board_wait):
        made = prepared(request, speech_sources)
        calibration = calibrated(request, made) if request.precision != "fp" else None
        binary, frontier = built(request, made, calibration)
        return judged(
            request,
            family=made.family,
            host=made.host,
            checkpoint=made.checkpoint,
            speech=made.test_speech,
            graphs=made.graphs,
            reference=made.reference,
            binary=binary,
            calibration=calibration,
            frontier=frontier,
        )


def prepared(request: PortRequest, sources: Callable[[Any], tuple[Source | None, Source | None]]) -> Prepared:
    """Check the request, export, and build the float binaries; what is missing is said before anything runs."""
    family = model_family(request)
    target = target_of(request.target, request.board)
    recipe = recipe_for(request, target.load().recipe(family))
    make_options(target, request.precision, request.float_nodes, request.target_options)
    board = board_of(target, request.board)
    if request.precision == "fp" and not computes_float(target, board):
        raise BadOptions(
            f"target {request.target} computes with integers on board {board.alias}: pass --precision int8 or auto, or "
            "another --board (`nightjar targets`)"
        )
    checkpoint = checkpoint_source(request, family)
    calibration_speech, test_speech = sources(request)
    host = plugin("targets", recipe.graph_format)

    exporter = plugin("models", family, "export")
    graphs = export(checkpoint=checkpoint, model=exporter, recipe=recipe, clamp=request.window is None)
    as_they_are = {"graphs": graphs, "calibration": None}
    reference = build(**as_they_are, target=host, options=make_options(host, "fp"), label="reference")
    as_float = make_options(target, "fp", chosen=request.target_options)
    floating = build(**as_they_are, target=target, options=as_float, label="float")
    return Prepared(family, target, host, checkpoint, calibration_speech, test_speech, graphs, reference, floating)


def built(request: PortRequest, made: Prepared, calibration: Any) -> tuple[Any, Any]:
    """Build the binary in the request's precision; return it and, where one was searched for, what was found."""
    found = Searched(made.graphs, {}, None)
    if request.precision in ("int8", "w8a16"):
        found = Searched(made.graphs, parameters(request, made.graphs, calibration), None)
    elif request.precision == "auto":
        found = searched(
            request,
            family=made.family,
            graphs=made.graphs,
            reference=made.reference,
            calibration=calibration,
            speech=made.calibration_speech,
        )
    binary = build(
        graphs=found.graphs,
        calibration=calibration if request.precision != "fp" else None,
        target=made.target,
        options=make_options(made.target, request.precision, request.float_nodes, request.target_options),
        **found.settings,
        label="binary",
    )
    return binary, found.frontier


def calibrated(request: PortRequest, made: Prepared) -> Any:
    """Harvest from the float binary where the target runs and calibrate on the host's float graphs.

    Where nothing computes in float there, harvest from the host's too: what is lost is the same (docs/accuracy.md).
    """
    decode = plugin("models", made.family, "decode")
    target, binary, board = made.target, made.floating, board_of(made.target, request.board)
    if not computes_float(target, board):
        target, binary, board = made.host, made.reference, board_of(made.host, None)
    hidden = harvest(
        binary=binary,
        speech=made.calibration_speech,
        session=session_of(decode, target, board),
        board=board,
        samples=request.calibration_samples,
        seed=0,
    )
    return calibrated_on(request, made, hidden)


def calibrated_on(request: PortRequest, made: Prepared, hidden: Any, **label: str) -> Any:
    """Calibrate on the host's float graphs from hidden states that some encoder gave."""
    return calibrate(
        reference=made.reference,
        hidden=hidden,
        speech=made.calibration_speech,
        model=plugin("models", made.family, "calibrate"),
        runner=plugin("targets", made.host.load().NAME, "runner"),
        options=calibration_options(request, made.family),
        **label,
    )


def calibration_options(request: PortRequest, family: str) -> BaseModel:
    """Return what a family's calibration takes of a request; what the request leaves open is the family's default."""
    asked = {
        "samples": request.calibration_samples,
        "states": request.calibration_states,
        "features": request.calibration_features,
        "language": request.language,
    }
    options: type[BaseModel] = plugin("models", family, "calibrate").load().CalibrationOptions
    return options(
        **{name: value for name, value in asked.items() if name in options.model_fields and value is not None}
    )


def recipe_for(request: PortRequest, recipe: Recipe) -> Recipe:
    """Lay what the request asks for over the target's recipe.

    Who asks for `window` has programs made for rknn_model_zoo, whose decoder takes token ids.
    """
    asked = {
        "window_s": request.window,
        "decoder": request.decoder,
        "decoder_length": request.decoder_length,
        "positional": request.positional,
        "host_embedding": request.host_embedding,
    }
    if request.decoder == "window" and request.host_embedding is None:
        asked["host_embedding"] = False
    return recipe.model_copy(update={name: value for name, value in asked.items() if value is not None})
