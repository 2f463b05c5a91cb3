"""board check, board serve, deploy, rollback: boards behind ssh."""

import argparse
import time
from typing import Any

from rich.markup import escape

from nightjar.cli.command import (
    FlowCommand,
    add_command,
    add_flow,
    add_group,
    add_json,
    parse_options,
    run_flow_command,
    write_json,
)
from nightjar.cli.console import Screen, show_findings, show_results
from nightjar.request import DeployRequest
from nightjar.service.main import add_arguments, exec_service


def _show_deployment(screen: Screen, results: dict[str, Any]) -> None:
    show_results(screen, results["port"])
    screen.render("release.txt", **results)


DEPLOY = FlowCommand(
    "deploy",
    "put a port on a board, canary first",
    DeployRequest,
    "flows.deploy:deploy",
    lambda request: f"{request.model} → {request.target}, {request.precision} to {request.board}",
    _show_deployment,
    lambda results: 1 if results["reason"] else 0,
)


def add(commands: Any) -> None:
    """Add them to the command line."""
    boards = add_group(commands, "board", "boards behind ssh")
    look = add_command(boards, "check", "check that a board answers and can run a target", _board_check)
    look.add_argument("alias", help="an alias of ~/.ssh/config or boards.toml, or env for BOARD_IP, …")
    look.add_argument("--target", help="target to check for (default: that of boards.toml, else all)")
    serve = "on a board: offer a binary's encoder to hosts, over gRPC"
    add_arguments(add_command(boards, "serve", serve, exec_service))

    deploy = add_flow(commands, DEPLOY, _deploy)
    deploy.add_argument("--list", action="store_true", help="list the board's releases, and deploy nothing")
    rollback = add_command(commands, "rollback", "make the release before the current one current again", _rollback)
    rollback.add_argument("--board", required=True, help="ssh alias of the board")
    rollback.add_argument("--name", default="", help="name of the deployment; default: the only one")
    rollback.add_argument("--to", default="", metavar="ID", help="an earlier release")
    add_json(rollback)


def _deploy(arguments: argparse.Namespace) -> int:
    if not arguments.list:
        return run_flow_command(DEPLOY, arguments)
    from nightjar.deploy.rollout import list_deployments  # ssh

    request = parse_options(arguments, DeployRequest)
    listed = {name: state.model_dump() for name, state in list_deployments(request.board).items()}
    _show_releases({name: listed[name] for name in listed if request.name in (None, name)}, request.board)
    write_json(arguments, listed)
    return 0


def _show_releases(deployments: dict[str, dict[str, Any]], board: str) -> None:
    """List a board's releases, newest first."""
    screen = Screen()
    if not deployments:
        screen.print(f"nothing is deployed on board {board}")
        return
    columns = ("name", "release", "", "since", "precision", "verdict", "WER %")
    rows = []
    for name, state in deployments.items():
        for release in state["releases"]:
            about = release["about"]
            port = about["port"] if isinstance(about.get("port"), dict) else {}
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(release["time_s"])) if release["time_s"] else ""
            mark = "current" if release["id"] == state["current"] else "before" if release["whole"] else "not in use"
            cells = [str(value)[:20] for value in (about.get("precision"), port.get("verdict"), port.get("wer"))]
            rows.append([escape(cell) for cell in (name, release["id"], mark, since, *cells)])
    screen.table(columns, rows, columns, ("name",))


def _rollback(arguments: argparse.Namespace) -> None:
    from nightjar.deploy.rollout import roll_back

    done = roll_back(arguments.board, arguments.name, arguments.to).model_dump(mode="json")
    Screen().render("release.txt", **done, board=arguments.board)
    write_json(arguments, done)


def _board_check(arguments: argparse.Namespace) -> int:
    from nightjar.cli.board_check import check

    return show_findings(check(arguments.alias, arguments.target))
