"""Score files made elsewhere: the end of the port's graph, without what builds.

checkpoint ─export─▶ graphs ─build─▶ float binary ─evaluate─┐
files + graphs ─adopt─▶ binary ─evaluate─▶ hypotheses ─judge─▶ verdict ─report─▶ page
what a board's own program printed ─read_printed─▶ hypotheses, in place of the last two; so is it run: ─run_program─▶
"""

from typing import Any

from prefect import flow

from flows.conclusion import judged
from flows.port import recipe_for
from flows.program import program_of
from nightjar.errors import BadOptions
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import checkpoint_source, model_family, speech_source
from nightjar.plugins.target import make_options, target_of
from nightjar.request import EvaluateRequest
from tasks.adopt import adopt, adopt_plugin, input_files, recognise
from tasks.build import build
from tasks.export import export
from tasks.hypotheses import EvaluateOptions
from tasks.read_printed import PrintedFiles, read_printed, reader
from tasks.run_program import named_files, run_program
from tasks.stage import current_or_new_run

PRECISION = "as given"  # a file does not say how it was made


@flow(name="evaluate", flow_run_name="evaluate-{request.model}-{request.target}")
def evaluate_files(request: EvaluateRequest) -> dict[str, Any]:
    """Export the recipe that the files are of, adopt them, evaluate, judge, report."""
    with current_or_new_run(request.refresh, request.board_wait):
        family = model_family(request)
        target = target_of(request.target, request.board)
        part = {name: plugin("models", family, name) for name in ("contract", "export")}
        program, tier = program_of(request, target), "device"
        if program is None and not request.files:
            raise BadOptions("nothing to evaluate: give the files of the parts, or the board's own --program")
        files = input_files(request.files)
        recipe = target.load().recipe(family)
        printed = reader(request.target, files)
        if program is not None:
            printed, tier = plugin("targets", request.target, "printed"), program.board.tier
        elif printed is None:
            taking = adopt_plugin(request.target)
            given = recognise(files, taking, part["contract"])
            recipe = recipe.model_copy(update=given.recipe)
            board_of(target, request.board)  # what is missing is said before anything runs
        recipe = recipe_for(request, recipe)
        checkpoint = checkpoint_source(request, family)
        speech = speech_source(request, "test")
        host = plugin("targets", recipe.graph_format)

        graphs = export(checkpoint=checkpoint, model=part["export"], recipe=recipe, clamp=True, label="adopted")
        if program is not None:
            binary = run_program(
                program=program.program,
                files=named_files(request.files),
                speech=speech,
                graphs=graphs,
                reader=printed,
                board=program.board,
                target=request.target,
                options=EvaluateOptions(language=request.language, limit=request.limit, long=request.long),
            )
        elif printed is not None:
            outputs = PrintedFiles(paths=files.paths, sha256=files.sha256)
            binary = read_printed(outputs=outputs, speech=speech, graphs=graphs, reader=printed, target=request.target)
        else:
            binary = adopt(files=files, graphs=graphs, target=taking, contract=part["contract"])
        reference = build(
            graphs=graphs, calibration=None, target=host, options=make_options(host, "fp"), label="reference"
        )
        return judged(
            request.model_copy(update={"precision": PRECISION}),
            family=family,
            host=host,
            checkpoint=checkpoint,
            speech=speech,
            graphs=graphs,
            reference=reference,
            binary=binary,
            calibration=None,
            obtained=binary if printed is not None else None,
            tier=tier,
        )
