"""board check, board serve, deploy, rollback: boards behind ssh."""

import argparse
from typing import Any

from nightjar.cli.command import (
    EXIT_CODES,
    FlowCommand,
    add_flow,
    add_group,
    add_json,
    parse_options,
    run_flow_command,
    show_findings,
    write_json,
)
from nightjar.request import DeployRequest
from nightjar.service.main import add_arguments, exec_service

DEPLOY = FlowCommand(
    "deploy",
    "put a port on a board, canary first",
    DeployRequest,
    "flows.deploy:deploy",
    lambda request: f"{request.model} → {request.target}, {request.precision} to {request.board}",
    "show_deployment",
    lambda results: 1 if results["reason"] else 0,
)


def add(commands: Any) -> None:
    """Add them to the command line."""
    boards = add_group(commands, "board", "boards behind ssh")
    look = boards.add_parser("check", help="check that a board answers and can run a target", epilog=EXIT_CODES)
    look.add_argument("alias", help="an alias of ~/.ssh/config or boards.toml, or env for BOARD_IP, …")
    look.add_argument("--target", help="target to check for (default: that of boards.toml, else all)")
    look.set_defaults(command=_board_check)
    offer = boards.add_parser(
        "serve", help="on a board: offer a binary's encoder to hosts, over gRPC", epilog=EXIT_CODES
    )
    add_arguments(offer)
    offer.set_defaults(command=exec_service)

    deploy = add_flow(commands, DEPLOY, _deploy)
    deploy.add_argument("--list", action="store_true", help="list the board's releases, and deploy nothing")
    rollback = commands.add_parser(
        "rollback", help="make the release before the current one current again", epilog=EXIT_CODES
    )
    rollback.add_argument("--board", required=True, help="ssh alias of the board")
    rollback.add_argument("--name", default="", help="name of the deployment; default: the only one")
    rollback.add_argument("--to", default="", metavar="ID", help="an earlier release")
    add_json(rollback, _rollback)


def _deploy(arguments: argparse.Namespace) -> int:
    if not arguments.list:
        return run_flow_command(DEPLOY, arguments)
    from nightjar.cli.console import show_releases
    from nightjar.deploy.rollout import list_deployments

    request = parse_options(arguments, DeployRequest)
    listed = {name: state.model_dump() for name, state in list_deployments(request.board).items()}
    show_releases({name: listed[name] for name in listed if request.name in (None, name)}, request.board)
    write_json(arguments, listed)
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from nightjar.cli.console import Screen, show_release
    from nightjar.deploy.rollout import roll_back

    done = roll_back(arguments.board, arguments.name, arguments.to).model_dump(mode="json")
    show_release(Screen(), {**done, "board": arguments.board})
    write_json(arguments, done)
    return 0


def _board_check(arguments: argparse.Namespace) -> int:
    from nightjar.cli.board_check import check

    return show_findings(check(arguments.alias, arguments.target))
