"""harvest, calibrate: encoder outputs of speech, from Nightjar and from other tools."""

import argparse
from typing import Any

from nightjar.cli.command import FlowCommand, add_command, add_flow, add_group, add_options, parse_options
from nightjar.cli.console import Screen
from nightjar.progress import listening
from nightjar.request import HarvestRequest, ImportRequest

IMPORT_DUMPS = FlowCommand(
    "import-dumps",
    "turn enc_*.bin dumps into a calibration set",
    ImportRequest,
    "flows.import_dumps:import_dumps_flow",
    lambda request: f"{request.bin_dir or request.program} for {request.model} → {request.target}",
    lambda screen, results: screen.render("calibration.txt", **results),
)


def add(commands: Any) -> None:
    """Add them to the command line."""
    description = "encoder outputs of much speech as a dataset, for distillation"
    add_options(add_command(commands, "harvest", description, _harvest), HarvestRequest)
    add_flow(add_group(commands, "calibrate", "calibration sets made of other tools' files"), IMPORT_DUMPS)


def _harvest(arguments: argparse.Namespace) -> None:
    from nightjar.sessions.bulk_harvest import harvest_speech

    request = parse_options(arguments, HarvestRequest)
    screen = Screen()
    screen.say(f"[bold]harvest[/bold] {request.speech} → {request.out}, board {request.board or 'default'}")
    with screen, listening(lambda done, total: screen.progress("harvest", done, total)):
        harvested = harvest_speech(request)
    index = harvested.dataset
    tensors = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in index.tensors.items())
    counts = f"{index.clips} clips in {len(index.shards)} shards, {harvested.new_clips} of them new"
    skipped = f"; {len(index.skipped)} clips longer than the window left out" if index.skipped else ""
    screen.say(f"{counts}{skipped}; float16: {tensors}")
    if request.dumps is not None:
        screen.say(f"dumps: {harvested.dumps} files enc_*.bin in {request.dumps}")
