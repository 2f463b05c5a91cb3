"""A board's own program, run clip by clip: its declared command line, and the result of each clip."""

import contextlib
import json
import logging
import re
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import nightjar.device.program_runner  # travels to the board, so its code is part of every key that runs a program
from nightjar.boards.board import Board
from nightjar.boards.config import RESERVED, boards_file, find_board
from nightjar.errors import BadOptions, BoardMissing, SessionFailed, printable
from nightjar.files import digest, digest_file, storage_errors, write_atomic
from nightjar.progress import tick
from nightjar.speech.audio import SAMPLE_RATE, load_audio

log = logging.getLogger(__name__)

DECLARED = "declared"
PLACEHOLDERS = ("clip", "language", "binary")
RUNNER_SOURCE = Path(nightjar.device.program_runner.__file__)
ALL, ALL_CLIPS = "all", "{clips}"
GIVE_UP = 5  # failed clips from the first on: the program cannot run any
TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]|[\x00\x08\x0e-\x1a]")


class BoardProgram(BaseModel, frozen=True):
    """A program of a board: its command, its working folder and its files; all of it enters a key."""

    command: tuple[str, ...]  # with {clip}, {language} and {binary}
    cwd: str = ""  # default: an empty folder per clip
    dumps: str = ""  # files that it writes, a glob relative to cwd
    timeout_s: float = 60.0
    files: dict[str, str] = {}  # sha256 of the words of the command that are files on the board


class ProgramResult(BaseModel):
    """The result of a program on a clip; the board is not trusted."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    ended: Literal["itself", "late", "flood", "unstarted"]
    status: int
    seconds: float = Field(ge=0)
    printed: int = Field(ge=0)
    stdout: str
    stderr: str
    dumps: list[tuple[str, int]] = Field(strict=False)

    def failure(self, timeout_s: float, silent: bool = False) -> str:
        """Return why the result does not count, empty where it does; a `silent` program need not print."""
        last = printable(TERMINAL.sub("", self.stderr.strip() or self.stdout.strip()).rpartition("\n")[2])
        last = f": {last}" if last else ""
        if self.ended == "unstarted":
            return f"it could not be started: {printable(self.stderr)}"
        if self.ended == "late":
            return f"it did not end within {timeout_s:g} s and was ended"
        if self.ended == "flood":
            return f"it printed without end and was ended after {self.printed >> 20} MiB"
        if self.status < 0:
            with contextlib.suppress(ValueError):
                return f"it was killed by {signal.Signals(-self.status).name}{last}"
        if self.status:
            return f"it ended with status {self.status}{last}"
        return "" if silent or self.stdout.strip() else "it printed nothing"

    def text(self) -> str:
        """Return the output without terminal sequences."""
        return TERMINAL.sub("", self.stdout).replace("\r\n", "\n").replace("\r", "\n")


def check_command(words: Sequence[str]) -> tuple[str, ...]:
    """Return a command with {clip} and known placeholders; raises BadOptions for any other."""
    used = {found for word in words for found in re.findall(r"\{([a-z_]+)\}", word)}
    if "clip" not in used or used - set(PLACEHOLDERS) or any("\0" in word for word in words):
        allowed = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise BadOptions(
            f"the program's command is {shlex.join(words)!r}: it needs {{clip}}, and may have {allowed}; "
            "see docs/boards.md"
        )
    return tuple(words)


def resolve_program(text: str, board: str | None, cwd: str, timeout_s: float, dumps: str = "") -> BoardProgram:
    """Return the program that a command line names, or the board's own in boards.toml; raises BadOptions."""
    if text != DECLARED:
        if cwd and not cwd.startswith(("/", "~/")):
            raise BadOptions(f"--program-cwd {cwd!r} is a folder on the board: give an absolute path or ~/…")
        try:
            words = shlex.split(text)  # as a shell would, and without one
        except ValueError as error:
            raise BadOptions(f"--program {text!r} is not a command line ({error}): quote it as for a shell") from error
        return BoardProgram(command=check_command(words), cwd=cwd, timeout_s=timeout_s, dumps=dumps)
    entry = find_board(board).entry.program if board is not None and board not in RESERVED else None
    if entry is None:
        raise BadOptions(
            f"--program {DECLARED} needs a program of the --board in {boards_file()}, and there is none: add "
            f"[{board or 'ALIAS'}.program], see docs/boards.md, or give the command line"
        )
    dumps, timeout_s = dumps and (entry.dumps or dumps), entry.timeout_s or timeout_s
    return BoardProgram(command=check_command(entry.command), cwd=entry.cwd, timeout_s=timeout_s, dumps=dumps)


def identify_program(board: Board, program: BoardProgram, alias: str) -> BoardProgram:
    """Add the sha256 of the program's files on the board; raises BoardMissing where the program is absent."""
    if "{" in program.command[0]:  # it is one of the files that are sent
        return program
    source, words = RUNNER_SOURCE.read_text(encoding="utf-8"), [word for word in program.command if "{" not in word]
    done = board.run([board.python, "-c", source, "describe", json.dumps(words), program.cwd], 300)
    try:
        found = program.model_validate({**program.model_dump(), "files": json.loads(done.stdout)})
    except (ValueError, ValidationError) as error:
        output = printable(done.stderr or done.stdout)
        raise SessionFailed(
            f"board {alias} cannot describe {program.command[0]} ({output}); check python in boards.toml"
        ) from error
    if not found.files:
        raise BoardMissing(
            f"board {alias} has no program {program.command[0]} that can be run, seen from {program.cwd or '/'}: "
            "build it there, and give its path with --program or in boards.toml"
        )
    return found


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
    """Run a program on clips (files, or int16 waves at 16 kHz) on a locked board; return the results by clip, in order.

    folder: the job's scratch folder; clips that a killed run finished there do not run again. binary: files that lie
    in {binary}. dump_bytes: fetch each clip's dump, of that size at most, to `folder`/fetched/CLIP.bin. A program that
    fails on all of the first clips does not run on the others. One whose command has the word {clips} runs once on all
    clips, always anew; its result is called ALL. Raises SessionFailed when the board is lost, or every clip fails.
    """
    together = ALL_CLIPS in program.command
    with storage_errors():
        for name, clip in clips.items():
            _write_wav(folder / "clips" / f"{name}.wav", clip)
    uploads = {"clipwise.py": RUNNER_SOURCE}
    uploads |= {f"clips/{name}.wav": folder / "clips" / f"{name}.wav" for name in clips}
    uploads |= {f"binary/{name}": path for name, path in binary.items()}
    content = {name: digest_file(path) for name, path in uploads.items()}
    identity = [program.model_dump(mode="json"), language, content, time.time_ns() if together else 0]
    there = board.job_folder(folder, digest(identity))
    paths = {name: str(there / "clips" / f"{name}.wav") for name in clips}
    values = {"language": language, "binary": str(there / "binary")}
    if together:
        commands = {ALL: _fill(program.command, values, list(paths.values()))}
    else:
        commands = {name: _fill(program.command, {**values, "clip": path}, []) for name, path in paths.items()}
    job = {
        "clips": [{"id": name, "command": command} for name, command in commands.items()],
        **program.model_dump(include={"cwd", "dumps", "timeout_s"}),
    }
    with storage_errors():
        write_atomic(folder / "job.json", json.dumps(job))
        uploads["job.json"] = folder / "job.json"
        board.put_all([(path, there / name) for name, path in uploads.items()])
    results: dict[str, ProgramResult] = {}
    failures: dict[str, str] = {}
    command = [board.python, str(there / "clipwise.py"), str(there)]
    silence_s = program.timeout_s + 60
    with contextlib.closing(board.stream(command, silence_s, lambda text: log.debug("program: %s", text))) as output:
        for text in output:
            result = _parse(text, commands)
            results[result.id] = result
            failures[result.id] = result.failure(program.timeout_s, silent=bool(dump_bytes))
            tick(len(results), len(commands))
            if len(results) == GIVE_UP and all(failures.values()):
                break
    if failures and all(failures.values()) and not together:
        name = next(iter(failures))
        raise SessionFailed(
            f"the board's own program failed on each of {len(failures)} clips, first {name}: {failures[name]}; "
            "run it there by hand, then the same command again"
        )
    if missing := [name for name in commands if name not in results]:
        raise SessionFailed(f"the board's own program was not run on {missing[0]}; run the same command again")
    if dump_bytes:
        wanted = [name for name, each in results.items() if len(each.dumps) == 1 and each.dumps[0][1] <= dump_bytes]
        with storage_errors():
            shutil.rmtree(folder / "fetched", ignore_errors=True)
            board.get_all([(there / "dumps" / f"{n}.bin", folder / "fetched" / f"{n}.bin") for n in wanted], dump_bytes)
    board.remove_job(there)
    return {name: results[name] for name in commands}


def _fill(words: tuple[str, ...], values: Mapping[str, str], clips: list[str]) -> list[str]:
    """Replace placeholders by values, once: a value that looks like a placeholder is not replaced."""
    filled: list[str] = []
    for word in words:
        one = re.sub(r"\{([a-z_]+)\}", lambda found: values.get(found[1], found[0]), word)
        filled += clips if word == ALL_CLIPS else [one]
    return filled


def _write_wav(path: Path, source: Path | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = load_audio(source) if isinstance(source, Path) else source
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


def _parse(text: str, clips: Mapping[str, Any]) -> ProgramResult:
    try:
        result = ProgramResult.model_validate_json(text)
    except ValidationError as error:
        raise SessionFailed(
            f"invalid result line ({error.errors()[0]['msg']}) from the board's program runner; "
            "check python in boards.toml"
        ) from error
    if result.id not in clips:
        raise SessionFailed(f"result for an unknown clip id {result.id[:100]!r} from the board's program runner")
    return result
