"""Find the board's own program that a request asks for, before anything runs."""

from typing import NamedTuple

from nightjar.boards.ref import BoardRef
from nightjar.plugins.board_choice import board_of_program
from nightjar.plugins.registry import Plugin
from nightjar.request import EvaluateRequest, ImportRequest
from nightjar.sessions.board_program import BoardProgram, identify_program, resolve_program


class OnBoard(NamedTuple):
    """A program and the board that has it."""

    program: BoardProgram
    board: BoardRef


def program_of(request: EvaluateRequest | ImportRequest, target: Plugin, dumps: str = "") -> OnBoard | None:
    """Find the program that is asked for and what it is, None where none is; raises BadOptions or BoardMissing."""
    if request.program is None:
        return None
    wanted = resolve_program(request.program, request.board, request.program_cwd, request.program_timeout_s, dumps)
    board = board_of_program(target, request.board)
    connected = board.connect()
    with connected.locked():
        return OnBoard(identify_program(connected, wanted, board.alias), board)
