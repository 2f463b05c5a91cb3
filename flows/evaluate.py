"""Score files made elsewhere: the end of the port's graph, without what builds.

checkpoint ─export─▶ graphs ─build─▶ float binary ─evaluate─┐
files + graphs ─adopt─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
output of a board's own program ─read_printed or run_program─▶ hypotheses, in place of adopt and evaluate
"""

from typing import Any

from prefect import flow

from flows.conclusion import conclude
from flows.prepare import find_program, prepare_graphs
from nightjar.errors import BadOptions
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import model_family, speech_source
from nightjar.plugins.target import target_of
from nightjar.request import EvaluateRequest
from tasks.adopt import adopt, adopt_plugin, input_files, recognise
from tasks.hypotheses import EvaluateOptions
from tasks.run_program import read_printed, reader, run_program
from tasks.stage import current_or_new_run


@flow(name="evaluate", flow_run_name="evaluate-{request.model}-{request.target}")
def evaluate_files(request: EvaluateRequest) -> dict[str, Any]:
    """Export the recipe that the files have, adopt them, evaluate, judge, report."""
    with current_or_new_run(request.refresh, request.board_wait):
        family = model_family(request)
        target = target_of(request.target, request.board)
        contract = plugin("models", family, "contract")
        program, board = find_program(request, target)
        if program is None and not request.files:
            raise BadOptions("nothing to evaluate: give the files of the parts, or the board's own --program")
        files = input_files(request.files)
        recipe = target.load().recipe(family)
        adopter, printed = None, reader(request.target, files)
        if program is not None:
            printed = plugin("targets", request.target, "printed")
        elif printed is None:
            adopter = adopt_plugin(request.target)
            recipe = recipe.model_copy(update=recognise(files, adopter, contract).recipe)
            board = board_of(target, request.board)
        if request.positional is not None:
            recipe = recipe.model_copy(update={"positional": request.positional})
        speech = speech_source(request.model, request.test_set, "test")
        prepared = prepare_graphs(request, family, target, board, recipe, test_speech=speech, label="adopted")
        graphs = prepared.graphs
        if program is not None:
            binary = run_program(
                program=program,
                files=files.by_name(),
                speech=speech,
                graphs=graphs,
                reader=printed,
                board=board,
                target=request.target,
                options=EvaluateOptions(language=request.language, limit=request.limit, long=request.long, probes=True),
            )
        elif printed is not None:
            outputs = files.by_name()
            binary = read_printed(outputs=outputs, speech=speech, graphs=graphs, reader=printed, target=request.target)
        else:
            binary = adopt(files=files, graphs=graphs, target=adopter, contract=contract)
        return conclude(
            request,
            prepared,
            binary=binary,
            precision="as given",  # a file does not say how it was made
            hypotheses=binary if printed is not None else None,
            tier=board.tier if board is not None else "device",
        )
