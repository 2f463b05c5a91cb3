"""flows deploy, flows revive: what people and workers find on the Prefect server."""

import argparse
import time
from pathlib import Path
from typing import Any

from nightjar.cli.command import EXIT_CODES, add_group, add_json, write_json
from nightjar.errors import Broken, ServerMissing
from nightjar.paths import ROOT

BEATS_S = 150.0  # five heartbeats


def add(commands: Any) -> None:
    """Add them to the command line."""
    flows = add_group(commands, "flows", "deployments on the Prefect server")
    deploy = flows.add_parser(
        "deploy", help="put the deployments, their queues and limits on the server", epilog=EXIT_CODES
    )
    deploy.add_argument("--file", type=Path, help="in place of deployments/prefect.yaml")
    deploy.add_argument("--pool", metavar="NAME", help="work pool (default: the file's)")
    deploy.add_argument(
        "--work-dir", type=Path, default=ROOT, help="the project's folder on the workers (default: this one's)"
    )
    deploy.add_argument(
        "--reset", action="store_true", help="as the file says, whatever was changed or switched off on the server"
    )
    add_json(deploy, _deploy)
    revive = flows.add_parser(
        "revive", help="let runs go on whose worker was killed; what is alive stays as it is", epilog=EXIT_CODES
    )
    revive.add_argument(
        "--older-than",
        type=float,
        default=BEATS_S,
        metavar="S",
        help="seconds that a run must have been silent if its lock cannot be seen here (default: 150)",
    )
    revive.add_argument(
        "--crashed", action="store_true", help="and those that crashed in the last day, five times each"
    )
    revive.add_argument("--every", type=float, metavar="S", help="look again every S seconds, until interrupted")
    add_json(revive, _revive)


def _deploy(arguments: argparse.Namespace) -> int:
    from flows.deployments import FILE, read_deployments
    from flows.register import register
    from nightjar.cli.console import Screen, show_rows

    book = read_deployments(arguments.file or FILE, arguments.pool, arguments.work_dir.resolve())
    rows = register(book, arguments.reset)
    show_rows(rows)
    pool = book.nightjar.pool.name
    Screen().say(
        f"a worker: [bold].venv/bin/prefect worker start --pool {pool}[/bold], in {arguments.work_dir.resolve()}"
    )
    write_json(arguments, [row._asdict() for row in rows])
    return 0


def _revive(arguments: argparse.Namespace) -> int:
    from flows.revive import revive
    from nightjar.cli.console import Screen

    screen = Screen()
    while True:
        try:
            found = revive(arguments.older_than, arguments.crashed)
        except (Broken, ServerMissing) as error:
            if arguments.every is None:
                raise
            screen.say(f"{error}")  # it may come back, and is asked again
            found = []
        changed = [one for one in found if one.outcome != "alive"]
        for one in changed:
            screen.say(f"{one.outcome} {one.name} ({one.run}): {one.why}")
        if arguments.every is None:
            if not changed:
                screen.say(f"nothing to revive: {len(found)} alive")
            write_json(arguments, [{**one._asdict(), "run": str(one.run)} for one in found])
            return 0
        time.sleep(arguments.every)
