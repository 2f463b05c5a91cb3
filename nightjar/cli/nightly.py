"""nightly, bisect: every cell of a config, and one cell twice."""

import argparse
from pathlib import Path
from typing import Any

from nightjar.cli.command import add_request, write_json
from nightjar.cli.flags import parse_options
from nightjar.nightly.config import BisectRequest, NightRequest


def add(commands: Any) -> None:
    """Add them to the command line."""
    said = "every cell of a config: a night, kept in the history and held against earlier ones"
    nightly = add_request(commands, "nightly", said, NightRequest, _nightly)
    nightly.add_argument("--plan", action="store_true", help="print what each cell would run and why, and run nothing")
    said = "one cell under two checkpoints or two toolchains, and what differs; 1 if B hears worse than A"
    bisect = add_request(commands, "bisect", said, BisectRequest, _bisect)
    for flag, name in (("--checkpoint", "checkpoints"), ("--toolchain", "toolchains")):
        described = BisectRequest.model_fields[name].description
        bisect.add_argument(
            flag, dest=name, type=Path, nargs="+", metavar="PATH", default=argparse.SUPPRESS, help=described
        )


def _nightly(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen
    from nightjar.cli.show_nights import show_night, show_planned_night

    request = parse_options(arguments, NightRequest)
    if hasattr(arguments, "config"):  # a person's relative path is from where the person is
        request = request.model_copy(update={"config": request.config.resolve()})
    screen = Screen()
    screen.say(f"[bold]nightly[/bold] {request.file()}")
    from flows.nightly import nightly, plan_night
    from flows.start import run_flow

    if arguments.plan:
        show_planned_night(screen, plan_night(request))
        return 0
    results, _ = run_flow(nightly, request, screen)
    show_night(screen, results)
    write_json(arguments, results)
    return 0 if results["night"]["outcome"] == "PASS" else 1


def _bisect(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen
    from nightjar.cli.show_nights import show_bisected

    request = parse_options(arguments, BisectRequest)
    screen = Screen()
    screen.say(f"[bold]bisect[/bold] {request.model} → {request.target}, {request.precision}: A, then B")
    from flows.bisect import bisect
    from flows.start import run_flow

    results, _ = run_flow(bisect, request, screen)
    show_bisected(screen, results)
    write_json(arguments, results)
    return 1 if results["wer"] is not None and results["wer"]["low"] > 0 else 0
