"""A board's own program, called clip by clip: its declared command line, and what became of each clip."""

import contextlib
import json
import logging
import re
import shlex
import shutil
import signal
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import nightjar.device.program_runner  # travels to the board, so its code is part of every key that runs a program
from nightjar.boards.board import Board
from nightjar.boards.config import RESERVED, boards_file, find_board
from nightjar.errors import BadOptions, BoardMissing, SessionFailed
from nightjar.files import digest, storage_errors, write_atomic
from nightjar.progress import tick
from nightjar.speech.audio import load_audio
from nightjar.text import printable

log = logging.getLogger(__name__)

DECLARED = "declared"
PLACEHOLDERS = ("clip", "language", "binary")
RUNNER_SOURCE = Path(nightjar.device.program_runner.__file__)
ALL, ALL_CLIPS = "all", "{clips}"
GIVE_UP = 5  # clips in a row from the first: a program that cannot do any of them
TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]|[\x00\x08\x0e-\x1a]")


class BoardProgram(BaseModel, frozen=True):
    """Name a program of a board: what is run, where, and what it is; all of it enters a key."""

    command: tuple[str, ...]  # with {clip}, {language} and {binary}
    cwd: str = ""  # the clip's own empty folder where there is none
    dumps: str = ""  # files that it writes, a glob relative to cwd
    timeout_s: float = 60.0
    files: dict[str, str] = {}  # words of the command that are files on the board, by sha256


class ProgramResult(BaseModel):
    """What a clip's run came to; a board may say anything."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    ended: Literal["itself", "late", "flood", "unstarted"]
    status: int
    seconds: float = Field(ge=0)
    printed: int = Field(ge=0)
    stdout: str
    stderr: str
    dumps: list[tuple[str, int]] = Field(strict=False)

    def trouble(self, timeout_s: float, silent: bool = False) -> str:
        """Say why nothing of this run counts, empty where it ended as it should; a `silent` program need not print."""
        last = printable(TERMINAL.sub("", self.stderr.strip() or self.stdout.strip()).rpartition("\n")[2])
        if self.ended == "unstarted":
            return f"it could not be started: {printable(self.stderr)}"
        if self.ended == "late":
            return f"it did not end within {timeout_s:g} s and was ended"
        if self.ended == "flood":
            return f"it printed without end and was ended after {self.printed >> 20} MiB"
        if self.status < 0:
            with contextlib.suppress(ValueError):
                return f"it was killed by {signal.Signals(-self.status).name}" + (f": {last}" if last else "")
        if self.status:
            return f"it ended with status {self.status}" + (f": {last}" if last else "")
        return "" if silent or self.stdout.strip() else "it printed nothing"

    def text(self) -> str:
        """Return what it printed without what is meant for a terminal."""
        return TERMINAL.sub("", self.stdout).replace("\r\n", "\n").replace("\r", "\n")


def parse_command(text: str) -> tuple[str, ...]:
    """Split a command line into its words, as a shell would and without one; raises BadOptions."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BadOptions(f"--program {text!r} is no command line ({error}): quote it as for a shell") from error
    return check_command(words)


def check_command(words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a command without {clip} or with a placeholder that there is not; raises BadOptions."""
    used = {found for word in words for found in re.findall(r"\{([a-z_]+)\}", word)}
    if not words or "clip" not in used or used - set(PLACEHOLDERS) or any("\0" in word for word in words):
        named = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise BadOptions(
            f"the program's command is {shlex.join(words)!r}: it takes {{clip}} at least, and has the placeholders "
            f"{named}; see docs/boards.md"
        )
    return words


def resolve_program(text: str, board: str | None, cwd: str, timeout_s: float, dumps: str = "") -> BoardProgram:
    """Return the program that a command line names, or the board's own in boards.toml; raises BadOptions."""
    if text != DECLARED:
        if cwd and not cwd.startswith(("/", "~/")):
            raise BadOptions(f"--program-cwd {cwd!r} is a folder on the board: give an absolute path or ~/…")
        return BoardProgram(command=parse_command(text), cwd=cwd, timeout_s=timeout_s, dumps=dumps)
    entry = find_board(board).entry.program if board is not None and board not in RESERVED else None
    if entry is None:
        raise BadOptions(
            f"--program {DECLARED} is what {boards_file()} declares for the --board, and there is nothing: add "
            f"[{board or 'ALIAS'}.program], see docs/boards.md, or give the command line"
        )
    return BoardProgram(
        command=check_command(tuple(entry.command)),
        cwd=entry.cwd,
        dumps=dumps and (entry.dumps or dumps),
        timeout_s=entry.timeout_s or timeout_s,
    )


def identify_program(board: Board, program: BoardProgram, alias: str) -> BoardProgram:
    """Ask the board what the program is, by content; raises BoardMissing where it is not there."""
    words = [word for word in program.command if "{" not in word] or list(program.command[:1])
    if "{" in program.command[0]:  # it is one of the files that are sent
        return program
    asked = [board.python, "-c", RUNNER_SOURCE.read_text(encoding="utf-8"), "describe", json.dumps(words), program.cwd]
    done = board.run(asked, 300)
    try:
        files = json.loads(done.stdout)
        checked = program.model_validate({**program.model_dump(), "files": files})
    except (ValueError, ValidationError) as error:
        said = printable(done.stderr or done.stdout)
        raise SessionFailed(
            f"board {alias} cannot say what {program.command[0]} is ({said}); look at python in boards.toml"
        ) from error
    if not checked.files:
        raise BoardMissing(
            f"board {alias} has no program {program.command[0]} that can be run, seen from {program.cwd or '/'}: "
            "build it there, and give its path with --program or in boards.toml"
        )
    return checked


def run_program(
    board: Board,
    program: BoardProgram,
    clips: Mapping[str, Path | np.ndarray],
    folder: Path,
    *,
    language: str,
    binary: Mapping[str, Path] = {},
    dump_bytes: int = 0,
) -> dict[str, ProgramResult]:
    """Run a program on clips (files, or int16 waves at 16 kHz) and return what became of each, by clip, in order.

    The board is held by the caller. `folder` is the job's scratch folder: finished clips of an earlier, killed run are
    not run again. binary: files that lie in {binary}. With `dump_bytes` what it dumped on a clip, of that size at most,
    is fetched to `folder`/fetched/CLIP.bin. A program that fails on the first clips all alike is not asked for the
    rest. One whose command has the word {clips} hears all in one run, always anew, whose result is called ALL. Raises
    SessionFailed when the board is lost, or no clip comes to anything.
    """
    together = ALL_CLIPS in program.command
    described = {"program": program.model_dump(mode="json"), "language": language, "clips": list(clips)}
    identity = digest(
        [described, sorted(binary), RUNNER_SOURCE.read_text(encoding="utf-8"), time.time_ns() if together else 0]
    )
    there = board.job_folder(folder, identity)
    given: list[tuple[Path, Path]] = [(RUNNER_SOURCE, there / "clipwise.py")]
    with storage_errors():
        for name, source in clips.items():
            _write_wav(folder / "clips" / f"{name}.wav", source)
            given.append((folder / "clips" / f"{name}.wav", there / "clips" / f"{name}.wav"))
        means = {"language": language, "binary": str(there / "binary")}
        paths = {name: str(there / "clips" / f"{name}.wav") for name in clips}
        if together:
            commands = {ALL: _filled(program.command, means, list(paths.values()))}
        else:
            commands = {name: _filled(program.command, {**means, "clip": path}, []) for name, path in paths.items()}
        job = {
            "clips": [{"id": name, "command": command} for name, command in commands.items()],
            **program.model_dump(include={"cwd", "dumps", "timeout_s"}),
        }
        write_atomic(folder / "job.json", json.dumps(job))
        given.append((folder / "job.json", there / "job.json"))
        given += [(path, there / "binary" / name) for name, path in binary.items()]
        board.put_all(given)
    said: dict[str, ProgramResult] = {}

    def fails(one: ProgramResult) -> str:
        return one.trouble(program.timeout_s, silent=bool(dump_bytes))

    command = [board.python, str(there / "clipwise.py"), str(there)]
    silence_s = program.timeout_s + 60
    with contextlib.closing(board.stream(command, silence_s, lambda text: log.debug("clipwise: %s", text))) as lines:
        for text in lines:
            one = _read(text, commands)
            said[one.id] = one
            tick(len(said), len(commands))
            if len(said) == GIVE_UP and all(map(fails, said.values())):
                break
    troubles = {name: fails(each) for name, each in said.items()}
    if troubles and all(troubles.values()) and not together:
        name = next(iter(troubles))
        raise SessionFailed(
            f"the board's own program did nothing with any of {len(troubles)} clips, first {name}: {troubles[name]}; "
            "run it there by hand, then the same command again"
        )
    if missing := [name for name in commands if name not in said]:
        raise SessionFailed(f"the board's own program was not run on {missing[0]}; run the same command again")
    if dump_bytes:
        wanted = [name for name, each in said.items() if len(each.dumps) == 1 and each.dumps[0][1] <= dump_bytes]
        with storage_errors():
            shutil.rmtree(folder / "fetched", ignore_errors=True)
            board.get_all([(there / "dumps" / f"{n}.bin", folder / "fetched" / f"{n}.bin") for n in wanted], dump_bytes)
    board.remove_job(there)
    return {name: said[name] for name in commands}


def _filled(words: tuple[str, ...], means: Mapping[str, str], clips: list[str]) -> list[str]:
    """Put values where placeholders are, once: a value that looks like a placeholder stays what it is."""
    filled: list[str] = []
    for word in words:
        one = re.sub(r"\{([a-z_]+)\}", lambda found: means.get(found[1], found[0]), word)
        filled += clips if word == ALL_CLIPS else [one]
    return filled


def _write_wav(path: Path, source: Path | np.ndarray) -> None:
    samples = load_audio(source) if isinstance(source, Path) else source
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.astype("<i2").tobytes())


def _read(text: str, clips: Mapping[str, Any]) -> ProgramResult:
    try:
        one = ProgramResult.model_validate_json(text)
    except ValidationError as error:
        raise SessionFailed(
            f"what runs the board's own program wrote a line that is none ({error.errors()[0]['msg']}); "
            "look at python in boards.toml"
        ) from error
    if one.id not in clips:
        raise SessionFailed(f"what runs the board's own program spoke of no clip of ours, {one.id[:100]!r}")
    return one
