"""The board of a result: which of its properties enter a key, and how to open it."""

import os

from pydantic import BaseModel

from nightjar.boards.board import Board, BoardFacts, LocalBoard, simulator_count
from nightjar.boards.config import find_board
from nightjar.device.adb import SERIAL
from nightjar.toolchains.environment import toolchain


class BoardRef(BaseModel, frozen=True):
    """A board, or several of one kind (`a,b`), and its properties; the alias enters no key."""

    alias: str
    tier: str
    facts: BoardFacts
    toolchain: str = ""  # of the target whose SDK is the board: its simulator
    remote: bool = False  # an ssh alias
    adb: str = ""  # serial of a device without Python: the session runs here, and its runner calls the device
    runner: str = ""  # the module that runs the target's parts, where that is not its runner.py

    def identity(self) -> dict[str, object]:
        """Return the part a result depends on."""
        return {"tier": self.tier, **self.facts.model_dump()}

    def boards(self) -> list[Board]:
        """Open every board of the alias."""
        return [self.model_copy(update={"alias": alias}).connect() for alias in self.alias.split(",")]

    def connect(self) -> Board:
        """Open the board; raises ToolchainMissing for the simulator of an SDK that is not installed."""
        if self.remote:
            from nightjar.boards.ssh import SshBoard  # fabric, only when it is used

            return SshBoard(find_board(self.alias))
        if self.adb:
            environment = {**os.environ, SERIAL: self.adb}
            return LocalBoard(environment=environment, runners={self.runner.split(".")[1]: self.runner})
        if not self.toolchain:
            return LocalBoard()
        sdk = toolchain(self.toolchain)
        # A simulator uses one core, at any thread count.
        environment = {name: value for name, value in sdk.environment().items() if name != "PYTHONPATH"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return LocalBoard(str(sdk.python), environment, {self.toolchain: runner_module(self)}, simulator_count())


def runner_module(board: BoardRef) -> str:
    """Return the module that runs a target's parts in its own SDK or by adb, instead of its runner.py."""
    return board.runner or f"targets.{board.toolchain}.toolchain.simulate"
