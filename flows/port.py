"""Port one model to one target: the graph, in the order of its edges.

checkpoint ─export─▶ graphs ─build(float)─▶ binary ─harvest─▶ hidden ─calibrate─▶ calibration
graphs + calibration ─build─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
with --precision auto, ─search─▶ plan before the build (flows/precision_search.py)
"""

from typing import Any

from prefect import flow
from pydantic import BaseModel

from flows.conclusion import conclude
from flows.precision_search import SearchResult, quantization_parameters, search_precision
from flows.prepare import Prepared, prepare
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import computes_float, make_options, session_of
from nightjar.request import ImportRequest, PortRequest
from tasks.build import build
from tasks.calibrate import calibrate
from tasks.harvest import harvest
from tasks.stage import current_or_new_run


@flow(name="port", flow_run_name="port-{request.model}-{request.target}-{request.precision}")
def port(request: PortRequest) -> dict[str, Any]:
    """Export, harvest, calibrate, build, evaluate, judge, report; each step comes from the store where it can."""
    return run_port(request)[1]


def run_port(request: PortRequest) -> tuple[Prepared, dict[str, Any]]:
    """Run a port; return what it resolved the request to, and its results."""
    with current_or_new_run(request.refresh, request.board_wait):
        prepared = prepare(request)
        calibration = make_calibration(request, prepared) if request.precision != "fp" else None
        binary, frontier = build_binary(request, prepared, calibration)
        return prepared, conclude(
            request,
            prepared,
            binary=binary,
            precision=request.precision,
            calibration=calibration,
            frontier=frontier,
        )


def build_binary(request: PortRequest, prepared: Prepared, calibration: Any) -> tuple[Any, Any]:
    """Build the binary in the request's precision; return it and, of a search, what the search measured."""
    found = SearchResult(prepared.graphs, {}, None)
    if request.precision in ("int8", "w8a16"):
        found = found._replace(settings=quantization_parameters(request, prepared, prepared.graphs, calibration))
    elif request.precision == "auto":
        found = search_precision(request, prepared, calibration)
    binary = build(
        graphs=found.graphs,
        calibration=calibration if request.precision != "fp" else None,
        target=prepared.target,
        options=make_options(prepared.target, request.precision, request.float_nodes, request.target_options),
        **found.settings,
        label="binary",
    )
    return binary, found.frontier


def make_calibration(request: PortRequest, prepared: Prepared) -> Any:
    """Harvest from the float binary where the target runs, and calibrate on the host's float graphs.

    A board that cannot compute in float takes the host's encoder outputs; the loss is the same (docs/accuracy.md).
    """
    target, binary, board = prepared.target, prepared.floating, prepared.board
    if not computes_float(target, board):
        target, binary, board = prepared.host, prepared.reference, prepared.host_board
    hidden = harvest(
        binary=binary,
        speech=prepared.calibration_speech,
        session=session_of(prepared.decode, target, board),
        board=board,
        samples=request.calibration_samples,
        seed=0,
    )
    return calibrate_on(request, prepared, hidden)


def calibrate_on(request: PortRequest | ImportRequest, prepared: Prepared, hidden: Any, **label: str) -> Any:
    """Calibrate on the host's float graphs from the outputs of some encoder.

    A field that the request leaves open has the family's default.
    """
    module = plugin("models", prepared.family, "calibrate")
    options: type[BaseModel] = module.load().CalibrationOptions
    given = {
        "samples": request.calibration_samples,
        "states": request.calibration_states,
        "features": request.calibration_features,
        "language": request.language,
    }
    known = {name: value for name, value in given.items() if name in options.model_fields and value is not None}
    return calibrate(
        reference=prepared.reference,
        hidden=hidden,
        speech=prepared.calibration_speech,
        model=module,
        runner=plugin("targets", prepared.host.name, "runner"),
        options=options(**known),
        **label,
    )
