"""stack up, down, status, stop, start, secrets: the services that nights run on, from native packages."""

import argparse
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightjar.cli.command import Command, add_command, add_group, add_json, write_json
from nightjar.errors import ServerMissing, StackBroken, UnknownName
from nightjar.stack.state import (
    StackState,
    choose_ports,
    is_supervised,
    read_state,
    set_stopped,
    stack_folder,
    supervisor_lock,
    ui_address,
    write_known_hosts,
    write_secrets,
)

START_S = 600  # a first start on a slow machine: database, migrations, server, deployments
STOP_S = 120
MOST_RESTARTS = 4  # a service that restarts as often is named in the error


def add(commands: Any) -> None:
    """Add them to the command line."""
    stack = add_group(commands, "stack", "Prefect server, database, worker and board, from native packages")
    up = _add(stack, "up", "start the services and supervise them, until Ctrl-C or `nightjar stack down`", _up)
    up.add_argument("-d", "--detach", action="store_true", help="return once all services run")
    up.add_argument("--port", type=int, metavar="N", help="port of the UI; default: 4200, or a free one")
    _add(stack, "down", "end the services, in order", _down)
    add_json(_add(stack, "status", "state of every service", _status))
    for name, description, wanted in (
        ("stop", "stop one service", ("stopped",)),
        ("start", "start a stopped service", ("healthy", "done")),
    ):
        parser = _add(stack, name, description, _switch)
        parser.add_argument("service", help="worker, board, …")
        parser.set_defaults(wanted=wanted)
    _add(stack, "secrets", "write the secrets that docker-compose.yml reads, and start nothing", _secrets)


def _add(stack: Any, name: str, description: str, command: Command) -> argparse.ArgumentParser:
    parser = add_command(stack, name, description, command)
    folder = "the stack's folder; default: NIGHTJAR_STACK, or stack/"
    parser.add_argument("--folder", type=Path, metavar="F", help=folder)
    return parser


def _up(arguments: argparse.Namespace) -> None:
    from nightjar.stack.native_services import native_services, prepare
    from nightjar.stack.supervisor import end_leftovers, supervise

    folder = stack_folder(arguments.folder)
    if arguments.detach:
        return _detach(folder, arguments.port)
    with supervisor_lock(folder) as acquired:
        if not acquired:
            return _show_running(folder)
        end_leftovers(folder, read_state(folder))
        write_secrets(folder)
        ports = choose_ports(folder, arguments.port)
        services = native_services(folder, ports)
        write_known_hosts(folder)
        prepare(folder, ports)
        print(f"the stack is in {folder}, one log per service in {folder}/logs", flush=True)
        gc.enable()  # main disabled it, and this process runs for days
        try:
            supervise(folder, ports, services, _change_printer(folder, ports, services))
        except KeyboardInterrupt:
            print("the stack is down; the same command starts it again", flush=True)


def _change_printer(folder: Path, ports: dict[str, int], services: list[Any]) -> Callable[[str, str, Any], None]:
    """Return what prints each change of a service's status, and the UI's address once all services are up."""
    not_yet_up = {service.name for service in services}

    def print_change(before: str, after: str, service: Any) -> None:
        log = f", see {folder}/logs/{service.name}.log" if after in ("ended", "unhealthy") else ""
        print(f"  {service.name:<9} {after}{log}", flush=True)
        if service.name in not_yet_up and after in ("healthy", "done", "stopped"):
            not_yet_up.remove(service.name)
            if not not_yet_up:
                print(_address(folder, ports), flush=True)

    return print_change


def _address(folder: Path, ports: dict[str, int]) -> str:
    return (
        f"the UI is at {ui_address(ports)}; for the command line:\n"
        f"  export PREFECT_API_URL={ui_address(ports)}/api NIGHTJAR_BOARDS={folder}/board/boards.toml\n"
        "Ctrl-C here or `make stack-stop` ends it"
    )


def _show_running(folder: Path) -> None:
    state = _wait(folder, lambda state: state.well, "is not up yet", START_S)
    print(f"the stack of {folder} runs already")
    print(_address(folder, state.ports))


def _detach(folder: Path, port: int | None) -> None:
    from nightjar.stack.native_services import postgres_program, sshd_program

    if is_supervised(folder):
        return _show_running(folder)
    write_secrets(folder)
    postgres_program("postgres")  # reports a missing package here rather than in the log
    sshd_program()
    log = folder / "logs" / "stack.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "nightjar.cli.main", "stack", "up", "--folder", str(folder)]
    if port:
        command += ["--port", str(port)]
    nothing, merged = subprocess.DEVNULL, subprocess.STDOUT
    with log.open("w") as output:
        supervisor = subprocess.Popen(command, stdin=nothing, stdout=output, stderr=merged, start_new_session=True)
    state = _wait(folder, lambda state: state.pid == supervisor.pid and state.well, "is not up", START_S, supervisor)
    print(_address(folder, state.ports))


def _down(arguments: argparse.Namespace) -> None:
    from nightjar.stack.supervisor import end_leftovers

    folder = stack_folder(arguments.folder)
    if not folder.is_dir():
        print(f"there is no stack in {folder}")
        return
    state = read_state(folder)
    if is_supervised(folder) and state is not None:
        os.kill(state.pid, signal.SIGTERM)
        _wait(folder, lambda _: not is_supervised(folder), f"does not end within {STOP_S} s", STOP_S)
    end_leftovers(folder, state)
    print(f"the stack of {folder} is down; `make stack` starts it again")


def _status(arguments: argparse.Namespace) -> int:
    folder = stack_folder(arguments.folder)
    state = _running(folder)
    for name, service in state.parts.items():
        restarts = f", restarted {service.restarts}×" if service.restarts else ""
        print(f"  {name:<9} {service.status}{restarts}")
    print(_address(folder, state.ports))
    write_json(arguments, {"ui": ui_address(state.ports), **state._asdict()})
    return 0 if state.well else ServerMissing.exit_code


def _switch(arguments: argparse.Namespace) -> None:
    """Stop or start a service, and wait until it has a wanted status."""
    folder, name, wanted = stack_folder(arguments.folder), arguments.service, arguments.wanted
    services = _running(folder).parts
    if name not in services:
        raise UnknownName(f"the stack has no service {name!r}; have {', '.join(services)}: see `nightjar stack status`")
    set_stopped(folder, name, "stopped" in wanted)
    _wait(folder, lambda state: state.parts[name].status in wanted, f"has its {name} not {wanted[0]}", STOP_S)
    print(f"  {name:<9} {wanted[0]}")


def _secrets(arguments: argparse.Namespace) -> None:
    folder = stack_folder(arguments.folder)
    write_secrets(folder)
    print(f"the secrets are in {folder}/secrets, readable by you alone")


def _running(folder: Path) -> StackState:
    state = read_state(folder)
    if state is None or not is_supervised(folder):
        raise ServerMissing(f"no stack runs in {folder}: run `make stack`, or pass --folder of another stack")
    return state


def _wait(
    folder: Path,
    condition: Callable[[StackState], bool],
    problem: str,
    limit_s: float,
    supervisor: "subprocess.Popen[bytes] | None" = None,
) -> StackState:
    """Wait until the stack's state meets a condition; raises StackBroken with `problem` after `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while True:
        state = read_state(folder)
        if state is not None and condition(state):
            return state
        if time.monotonic() > end or (supervisor is not None and supervisor.poll() is not None):
            services = state.parts.items() if state else ()
            failing = [name for name, service in services if service.restarts >= MOST_RESTARTS]
            logs = ", ".join(f"{folder}/logs/{name}.log" for name in (*failing, "stack"))
            raise StackBroken(f"the stack of {folder} {problem}: see {logs}, then `nightjar stack status`")
        time.sleep(0.2)
