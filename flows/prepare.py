"""Resolve a request once, and build what every binary of it is made from.

Whether a board answers, what it has installed and whether it fits are asked here and nowhere else in a run.
"""

from typing import Any, NamedTuple

from nightjar.boards.ref import BoardRef
from nightjar.errors import BadOptions
from nightjar.plugins.board_choice import board_of, board_of_program
from nightjar.plugins.lint import large_parts, part_bytes
from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import Plugin, plugin
from nightjar.plugins.resolve import checkpoint_source, model_family, speech_source, speech_sources
from nightjar.plugins.target import computes_float, make_options, target_of
from nightjar.request import EvaluateRequest, ImportRequest, ModelChoice, PortRequest, RecipeOptions, Request
from nightjar.sessions.board_program import BoardProgram, identify_program, resolve_program
from nightjar.store.artifact import Source
from tasks.build import build
from tasks.export import export
from tasks.stage import current_run


class Prepared(NamedTuple):
    """A resolved request, and what every binary of it is made from."""

    family: str
    target: Plugin
    board: BoardRef  # runs the binary
    host: Plugin  # target that runs the float graphs on this machine
    host_board: BoardRef
    checkpoint: Source
    calibration_speech: Source | None
    test_speech: Source | None
    graphs: Any
    reference: Any  # float graphs, built for the host
    floating: Any = None  # float graphs, built for the target; None where the binary is not built here

    @property
    def decode(self) -> Plugin:
        """The family's decode loop."""
        return plugin("models", self.family, "decode")


def prepare(request: PortRequest, scored: bool = True) -> Prepared:
    """Resolve a request, export, and build the float binaries; what is missing is reported before anything runs.

    scored: whether there is evaluation speech.
    """
    family = model_family(request)
    target = target_of(request.target, request.board)
    recipe = recipe_for(request, target.load().recipe(family))
    make_options(target, request.precision, request.float_nodes, request.target_options)  # a wrong one is reported now
    board = board_of(target, request.board)
    if request.precision == "fp" and not computes_float(target, board):
        raise BadOptions(
            f"target {request.target} computes with integers on board {board.alias}: pass --precision int8 or auto, or "
            "another --board (`nightjar targets`)"
        )
    calibration_speech, test_speech = None, None
    if scored:
        calibration_speech, test_speech = speech_sources(request)
    elif request.precision != "fp":
        calibration_speech = speech_source(request.model, request.calibration_set, "calibration")
    prepared = prepare_graphs(request, family, target, board, recipe, calibration_speech, test_speech)
    float_options = make_options(target, "fp", target_options=request.target_options)
    floating = build(graphs=prepared.graphs, calibration=None, target=target, options=float_options, label="float")
    return prepared._replace(floating=floating)


def prepare_graphs(
    request: ModelChoice,
    family: str,
    target: Plugin,
    board: BoardRef | None,
    recipe: Recipe,
    calibration_speech: Source | None = None,
    test_speech: Source | None = None,
    label: str = "",
) -> Prepared:
    """Export, and build the float graphs for this machine; board: None where no session runs on the target's board."""
    current_run().model = request.model
    checkpoint = checkpoint_source(request, family)
    host = plugin("targets", recipe.graph_format)
    host_board = board_of(host, "local")
    exporter, clamp = plugin("models", family, "export"), getattr(request, "window", None) is None
    for large in large_parts(target, family, checkpoint.path, recipe, clamp):
        raise BadOptions(f"target {target.name} does not take the {large.part}, {large.why}; {large.remedy}")
    graphs = export(checkpoint=checkpoint, model=exporter, recipe=recipe, clamp=clamp, label=label)
    return Prepared(
        family=family,
        target=target,
        board=board or host_board,
        host=host,
        host_board=host_board,
        checkpoint=checkpoint,
        calibration_speech=calibration_speech,
        test_speech=test_speech,
        graphs=graphs,
        reference=build(
            graphs=graphs, calibration=None, target=host, options=make_options(host, "fp"), label="reference"
        ),
    )


def expected_sizes(request: PortRequest) -> dict[str, int]:
    """Return the bytes of each part's weights in float32, for a plan."""
    family = model_family(request)
    recipe = recipe_for(request, target_of(request.target, request.board).load().recipe(family))
    return part_bytes(family, checkpoint_source(request, family).path, recipe, clamp=request.window is None)


def find_program(
    request: EvaluateRequest | ImportRequest, target: Plugin, dumps: str = ""
) -> tuple[BoardProgram, BoardRef] | tuple[None, None]:
    """Find the board's own program that a request names, and its board; raises BadOptions or BoardMissing."""
    if request.program is None:
        return None, None
    wanted = resolve_program(request.program, request.board, request.program_cwd, request.program_timeout_s, dumps)
    board = board_of_program(target, request.board)
    connected = board.connect()
    with connected.locked():
        return identify_program(connected, wanted, board.alias), board


def recipe_for(request: Request, recipe: Recipe) -> Recipe:
    """Override a target's recipe with the fields that the request gives.

    The decoder `window` takes token ids unless the request says otherwise, as programs for rknn_model_zoo expect.
    """
    given = request.model_dump(include={*RecipeOptions.model_fields, "task"}, exclude_none=True)
    if "window" in given:
        given["window_s"] = given.pop("window")
    if given.get("decoder") == "window":
        given.setdefault("host_embedding", False)
    return recipe.model_copy(update=given)
