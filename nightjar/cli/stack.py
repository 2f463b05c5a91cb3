"""stack up, down, status, stop, start, secrets: what nights run on, from native packages of this machine."""

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

from nightjar.cli.command import EXIT_CODES, add_group, add_json, write_json
from nightjar.errors import ServerMissing, StackBroken, UnknownName
from nightjar.stack.state import (
    State,
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

START_S = 600  # of a slow machine's first start: database, migrations, server, deployments
STOP_S = 120
HOPELESS = 4  # restarts, and a part is no part that is still starting


def add(commands: Any) -> None:
    """Add them to the command line."""
    stack = add_group(commands, "stack", "Prefect server, database, worker and board, from native packages")
    up = _add(stack, "up", "start it and keep it running, until Ctrl-C or `nightjar stack down`", _up)
    up.add_argument("-d", "--detach", action="store_true", help="return once it is up")
    up.add_argument("--port", type=int, metavar="N", help="of the UI; default: 4200, or a free one")
    _add(stack, "down", "end it, in order", _down)
    add_json(_add(stack, "status", "what its parts are doing", _status), _status)
    for name, said in (("stop", "leave one part down"), ("start", "have it up again")):
        _add(stack, name, said, _stop if name == "stop" else _start).add_argument("part", help="worker, board, …")
    _add(stack, "secrets", "write the secrets that docker-compose.yml wants, and start nothing", _secrets)


def _add(stack: Any, name: str, said: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = stack.add_parser(name, help=said, epilog=EXIT_CODES)
    parser.add_argument("--folder", type=Path, metavar="F", help="where it lies; default: NIGHTJAR_STACK, or stack/")
    parser.set_defaults(command=command)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    from nightjar.stack.native_services import native_parts, prepare
    from nightjar.stack.supervisor import end_leftovers, supervise

    folder = stack_folder(arguments.folder)
    if arguments.detach:
        return _detach(folder, arguments.port)
    with supervisor_lock(folder) as ours:
        if not ours:
            return _found(folder)
        end_leftovers(folder, read_state(folder))
        write_secrets(folder)
        ports = choose_ports(folder, arguments.port)
        parts = native_parts(folder, ports)
        write_known_hosts(folder)
        prepare(folder, ports)
        print(f"the stack is in {folder}, a log for each part in {folder}/logs", flush=True)
        told = _Told(folder, ports, [part.name for part in parts])
        gc.enable()  # the command line goes without, and this goes on for days
        try:
            supervise(folder, ports, parts, told)
        except KeyboardInterrupt:
            print("the stack is down; the same command goes on from here", flush=True)
    return 0


class _Told:
    """Say what becomes of the parts, and once where the UI is."""

    def __init__(self, folder: Path, ports: dict[str, int], names: list[str]) -> None:
        self.folder, self.ports, self.doing = folder, ports, dict.fromkeys(names, "waiting")
        self.said = False

    def __call__(self, before: str, after: str, part: Any) -> None:
        self.doing[part.name] = after
        why = f", see {self.folder}/logs/{part.name}.log" if after in ("ended", "unhealthy") else ""
        print(f"  {part.name:<9} {after}{why}", flush=True)
        if not self.said and all(doing in ("healthy", "done", "stopped") for doing in self.doing.values()):
            self.said = True
            print(_address(self.folder, self.ports), flush=True)


def _address(folder: Path, ports: dict[str, int]) -> str:
    return (
        f"the UI is at {ui_address(ports)}; for the command line:\n"
        f"  export PREFECT_API_URL={ui_address(ports)}/api NIGHTJAR_BOARDS={folder}/board/boards.toml\n"
        "Ctrl-C here or `make stack-stop` ends it"
    )


def _found(folder: Path) -> int:
    state = _wait(folder, lambda state: state.well, "is not up yet", START_S)
    print(f"the stack of {folder} runs already")
    print(_address(folder, state.ports))
    return 0


def _detach(folder: Path, port: int | None) -> int:
    from nightjar.stack.native_services import postgres_program, sshd_program

    if is_supervised(folder):
        return _found(folder)
    write_secrets(folder)
    postgres_program("postgres")  # what is missing is said here
    sshd_program()
    log = folder / "logs" / "stack.log"
    log.parent.mkdir(exist_ok=True)
    asked = ["--port", str(port)] if port else []
    with log.open("w") as said:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "nightjar.cli.main", "stack", "up", "--folder", str(folder), *asked],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    state = _wait(folder, lambda state: state.pid == keeper.pid and state.well, "is not up", START_S, keeper)
    print(_address(folder, state.ports))
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from nightjar.stack.supervisor import end_leftovers

    folder = stack_folder(arguments.folder)
    if not folder.is_dir():
        print(f"there is no stack in {folder}")
        return 0
    state = read_state(folder)
    if is_supervised(folder) and state is not None:
        os.kill(state.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while is_supervised(folder):
            if time.monotonic() > end:
                raise StackBroken(f"the stack of {folder} does not end within {STOP_S} s: see {folder}/logs")
            time.sleep(0.2)
    end_leftovers(folder, state)
    print(f"the stack of {folder} is down; `make stack` goes on from here")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    folder = stack_folder(arguments.folder)
    state = _running(folder)
    for name, part in state.parts.items():
        again = f", started again {part.restarts}×" if part.restarts else ""
        print(f"  {name:<9} {part.doing}{again}")
    print(_address(folder, state.ports))
    write_json(arguments, {"ui": ui_address(state.ports), **state._asdict()})
    return 0 if state.well else ServerMissing.exit_code


def _stop(arguments: argparse.Namespace) -> int:
    return _ask(arguments, True)


def _start(arguments: argparse.Namespace) -> int:
    return _ask(arguments, False)


def _ask(arguments: argparse.Namespace, down: bool) -> int:
    folder, name = stack_folder(arguments.folder), arguments.part
    state = _running(folder)
    if name not in state.parts:
        raise UnknownName(f"the stack has no part {name!r}; have {', '.join(state.parts)}: see `nightjar stack status`")
    set_stopped(folder, name, down)
    wanted = ("stopped",) if down else ("healthy", "done")
    _wait(folder, lambda state: state.parts[name].doing in wanted, f"has its {name} not {wanted[0]}", STOP_S)
    print(f"  {name:<9} {wanted[0]}")
    return 0


def _secrets(arguments: argparse.Namespace) -> int:
    folder = stack_folder(arguments.folder)
    write_secrets(folder)
    print(f"the secrets are in {folder}/secrets, for you alone")
    return 0


def _running(folder: Path) -> State:
    state = read_state(folder)
    if state is None or not is_supervised(folder):
        raise ServerMissing(f"no stack runs in {folder}: `make stack`, or --folder with another one's")
    return state


def _wait(
    folder: Path,
    arrived: Callable[[State], bool],
    lacking: str,
    limit_s: float,
    keeper: "subprocess.Popen[bytes] | None" = None,
) -> State:
    end = time.monotonic() + limit_s
    while True:
        state = read_state(folder)
        if state is not None and arrived(state):
            return state
        hopeless = [name for name, part in state.parts.items() if part.restarts >= HOPELESS] if state else []
        if time.monotonic() > end or (keeper is not None and keeper.poll() is not None):
            logs = ", ".join(f"{folder}/logs/{name}.log" for name in (*hopeless, "stack"))
            raise StackBroken(f"the stack of {folder} {lacking}: see {logs}, then `nightjar stack status`")
        time.sleep(0.2)
