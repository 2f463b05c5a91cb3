"""flows deploy, flows revive: deployments and runs on the Prefect server."""

import argparse
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from nightjar.cli.command import add_command, add_group, add_json, write_json
from nightjar.cli.console import Screen
from nightjar.errors import Broken, ServerMissing
from nightjar.paths import ROOT

SILENCE_S = 150.0  # five heartbeats
COLOURS = {"created": "green", "updated": "yellow", "reset": "yellow"}


def add(commands: Any) -> None:
    """Add them to the command line."""
    flows = add_group(commands, "flows", "deployments on the Prefect server")
    deploy = add_command(flows, "deploy", "put the deployments, their queues and limits on the server", _register)
    deploy.add_argument("--file", type=Path, help="in place of deployments/prefect.yaml")
    deploy.add_argument("--pool", metavar="NAME", help="work pool (default: the file's)")
    work_dir = "the project's folder on the workers (default: this one's)"
    deploy.add_argument("--work-dir", type=Path, default=ROOT, help=work_dir)
    deploy.add_argument("--reset", action="store_true", help="overwrite what was changed or switched off on the server")
    add_json(deploy)
    revive = add_command(flows, "revive", "resume runs whose worker was killed; live runs stay untouched", _revive)
    silence = "seconds of silence of a run whose lock is not on this machine (default: 150)"
    revive.add_argument("--older-than", type=float, default=SILENCE_S, metavar="S", help=silence)
    crashed = "also resume runs that crashed in the last day, at most five times each"
    revive.add_argument("--crashed", action="store_true", help=crashed)
    revive.add_argument("--every", type=float, metavar="S", help="repeat every S seconds, until interrupted")
    add_json(revive)


def _register(arguments: argparse.Namespace) -> None:
    from flows.deployments import FILE, read_deployments
    from flows.register import register

    book = read_deployments(arguments.file or FILE, arguments.pool, arguments.work_dir.resolve())
    changes = register(book, arguments.reset)
    screen = Screen()
    rows = [
        (kind, escape(name), f"[{COLOURS.get(outcome, 'default')}]{outcome}[/]", escape(detail))
        for kind, name, outcome, detail in changes
    ]
    screen.table(("", "", "", ""), rows, ("",), ("",))
    worker = f".venv/bin/prefect worker start --pool {book.nightjar.pool.name}"
    screen.say(f"a worker: [bold]{worker}[/bold], in {arguments.work_dir.resolve()}")
    write_json(arguments, [change._asdict() for change in changes])


def _revive(arguments: argparse.Namespace) -> None:
    from flows.revive import revive

    screen = Screen()
    while True:
        try:
            runs = revive(arguments.older_than, arguments.crashed)
        except (Broken, ServerMissing) as error:
            if arguments.every is None:
                raise
            screen.say(f"{error}")  # the server may come back: try again
            runs = []
        changed = [run for run in runs if run.outcome != "alive"]
        for run in changed:
            screen.say(f"{run.outcome} {run.name} ({run.run}): {run.why}")
        if arguments.every is None:
            if not changed:
                screen.say(f"nothing to revive: {len(runs)} alive")
            write_json(arguments, [{**run._asdict(), "run": str(run.run)} for run in runs])
            return
        time.sleep(arguments.every)
