"""harvest, calibrate: encoder outputs of speech, ours and other tools'."""

import argparse
from typing import Any

from nightjar.cli.command import EXIT_CODES, add_group, add_request, write_json
from nightjar.cli.flags import add_options, parse_options
from nightjar.request import HarvestRequest, ImportRequest


def add(commands: Any) -> None:
    """Add them to the command line."""
    harvest = commands.add_parser(
        "harvest", help="encoder outputs of much speech as a dataset, for distillation", epilog=EXIT_CODES
    )
    add_options(harvest, HarvestRequest)
    harvest.set_defaults(command=_harvest)
    calibrating = add_group(commands, "calibrate", "calibration sets made of other tools' files")
    add_request(calibrating, "import-dumps", "enc_*.bin dumps to a calibration set", ImportRequest, _import_dumps)


def _harvest(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_harvest
    from nightjar.progress import listening
    from nightjar.sessions.bulk_harvest import harvest_speech

    request = parse_options(arguments, HarvestRequest)
    screen = Screen()
    screen.say(f"[bold]harvest[/bold] {request.speech} → {request.out}, board {request.board or 'default'}")
    with screen, listening(lambda done, total: screen.progress("harvest", done, total)):
        harvested = harvest_speech(request)
    show_harvest(screen, harvested.dataset, harvested.made)
    if request.dumps is not None:
        screen.say(f"dumps: {harvested.dumps} files enc_*.bin in {request.dumps}")
    return 0


def _import_dumps(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_calibration

    request = parse_options(arguments, ImportRequest)
    screen = Screen()
    screen.say(f"[bold]import-dumps[/bold] {request.bin_dir or request.program} for {request.model} → {request.target}")
    from flows.import_dumps import import_dumps_flow
    from flows.start import run_flow

    results, _ = run_flow(import_dumps_flow, request, screen, refresh=request.refresh)
    show_calibration(screen, results)
    write_json(arguments, results)
    return 0
