"""nightly, bisect: every cell of a config, and one cell twice."""

import argparse
from typing import Any

from nightjar.cli.command import FlowCommand, add_flow, parse_options, run_flow_command
from nightjar.cli.console import Screen
from nightjar.cli.show_nights import show_bisected, show_night
from nightjar.nightly.config import BisectRequest, NightRequest

NIGHTLY = FlowCommand(
    "nightly",
    "every cell of a config: a night, written to the history and compared with earlier nights",
    NightRequest,
    "flows.nightly:nightly",
    lambda request: str(request.file()),
    show_night,
    lambda results: 0 if results["night"]["outcome"] == "PASS" else 1,
)
BISECT = FlowCommand(
    "bisect",
    "one cell under two checkpoints or two toolchains, and what differs; 1 if WER is worse in B than in A",
    BisectRequest,
    "flows.bisect:bisect",
    lambda request: f"{request.model} → {request.target}, {request.precision}: A, then B",
    show_bisected,
    lambda results: 1 if results["wer"] is not None and results["wer"]["low"] > 0 else 0,
)


def add(commands: Any) -> None:
    """Add them to the command line."""
    nightly = add_flow(commands, NIGHTLY, _nightly)
    nightly.add_argument("--plan", action="store_true", help="print what each cell would run and why, and run nothing")
    add_flow(commands, BISECT)


def _nightly(arguments: argparse.Namespace) -> int:
    if hasattr(arguments, "config"):
        arguments.config = arguments.config.resolve()  # relative to the current folder here, to the checkout elsewhere
    if not arguments.plan:
        return run_flow_command(NIGHTLY, arguments)
    request = parse_options(arguments, NightRequest)
    screen = Screen()
    screen.say(f"[bold]nightly[/bold] {request.file()}")
    from flows.nightly import plan_night

    screen.render("planned_night.txt", plans=plan_night(request))
    return 0
