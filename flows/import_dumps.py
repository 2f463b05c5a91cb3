"""Make a calibration set from encoder outputs that another tool dumped, as if they were harvested."""

from typing import Any

from prefect import flow

from flows.port import calibrate_on
from flows.prepare import find_program, prepare_graphs, recipe_for
from nightjar.errors import BadOptions
from nightjar.files import read_json
from nightjar.plugins.registry import plugin
from nightjar.plugins.resolve import model_family, speech_source
from nightjar.plugins.target import target_of
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.request import ImportRequest
from tasks.import_dumps import COLLECTED, dumps_source, import_dumps, ordered_source
from tasks.run_program import dump_program
from tasks.stage import current_or_new_run


@flow(name="import-dumps", flow_run_name="import-dumps-{request.model}-{request.target}")
def import_dumps_flow(request: ImportRequest) -> dict[str, Any]:
    """Export, check and import the dumps, calibrate; return the path and content of the calibration set."""
    with current_or_new_run(request.refresh, request.board_wait) as run:
        family = model_family(request)
        if not plugin("models", family, "calibrate").load().REQUIRES_HARVEST:
            raise BadOptions(f"a {family} is calibrated on speech directly and needs no dumps: run `nightjar port`")
        target = target_of(request.target, request.board)
        recipe = recipe_for(request, target.load().recipe(family))
        if (request.program is None) == (request.bin_dir is None):
            raise BadOptions("give the folder of the dumps with --bin-dir, or the --program that dumps: one of the two")
        dumps: Any = None if request.bin_dir is None else dumps_source(request.bin_dir)
        speech = speech_source(request.model, request.calibration_set, "calibration")
        program, board = find_program(request, target, request.dumps)
        prepared = prepare_graphs(request, family, target, None, recipe, calibration_speech=speech)
        if program is not None:
            dumps = dump_program(
                program=program,
                speech=speech,
                graphs=prepared.graphs,
                board=board,
                language=request.language,
                samples=request.calibration_samples,
                seed=0,
            )
        hidden = import_dumps(
            dumps=dumps,
            graphs=prepared.graphs,
            speech=ordered_source(speech),
            samples=request.calibration_samples,
            seed=0,
        )
        folder = run.store.path(calibrate_on(request, prepared, hidden))
        calibration = CalibrationSet.open(folder)
        return {
            "model": request.model,
            "target": request.target,
            "dumps": (request.bin_dir or run.store.path(dumps)).as_posix(),
            "aside": {} if program is None else read_json(run.store.path(dumps) / COLLECTED)["aside"],
            "skipped": int(hidden.meta["skipped"]),
            "calibration": folder.as_posix(),
            "samples": {part: calibration.count(part) for part in calibration.parts},
            "warnings": calibration.index.warnings,
            "datasets": [path.as_posix() for path in sorted(folder.glob("dataset/*/dataset.txt"))],
        }
