"""Let a board's own program hear speech, clip by clip: hypotheses of what it prints, or dumps for a calibration."""

import json
from pathlib import Path
from typing import Any

from nightjar.boards.ref import BoardRef
from nightjar.errors import BadInput, SessionFailed
from nightjar.files import digest_file
from nightjar.plugins.program_output import ProgramOutput
from nightjar.plugins.registry import Plugin
from nightjar.sessions.board_program import BoardProgram, ProgramResult
from nightjar.sessions.board_program import run_program as run_on_board
from nightjar.speech.manifest import Clip, load_speech, shuffled, split_by_window
from nightjar.text import printable
from tasks.adopt import InputFiles
from tasks.evaluate import silent_probes
from tasks.hypotheses import EvaluateOptions, select_clips, write_hypotheses
from tasks.import_dumps import COLLECTED, check_sizes
from tasks.read_printed import describe_program, hypothesis_line
from tasks.stage import stage

TEXT_CHARACTERS = 10_000  # twenty times what a window of speech can hold


class NamedFiles(InputFiles, frozen=True):
    """Name files that a program gets, which knows them by their names."""

    def identity(self) -> dict[str, str]:
        """Return what enters the key."""
        return {path.name: sha256 for path, sha256 in zip(self.paths, self.sha256, strict=True)}


def named_files(paths: tuple[Path, ...]) -> NamedFiles:
    """Name files by name and content; raises BadInput for one that is not there, or two of one name."""
    for path in paths:
        if not path.is_file() or [other.name for other in paths].count(path.name) > 1:
            raise BadInput(f"no file {path}, or two of this name: give the files that {{binary}} is to hold, one each")
    return NamedFiles(paths=tuple(path.resolve() for path in paths), sha256=tuple(map(digest_file, paths)))


@stage
def run_program(
    *,
    program: BoardProgram,
    files: NamedFiles,
    speech: Path,
    graphs: Path,
    reader: Plugin,
    board: BoardRef,
    target: str,
    options: EvaluateOptions,
    out: Path,
    work: Path,
) -> dict[str, str]:
    """Run a board's own program on every clip and the silent probes, and read what it prints; see docs/boards.md."""
    window_s = json.loads((graphs / "model.json").read_text(encoding="utf-8"))["recipe"]["window_s"]
    clips, skipped = select_clips(load_speech(speech), window_s, options)
    probes = silent_probes(window_s)
    connected = board.connect()
    with connected.locked():
        said = run_on_board(
            connected,
            program,
            {**{clip.id: clip.audio for clip in clips}, **probes},
            work,
            language=options.language,
            binary={path.name: path for path in files.paths},
        )
    lines: dict[str, dict[str, Any]] = {}
    aside: dict[str, str] = {}
    durations = {clip.id: clip.duration_s for clip in clips}
    for name, one in said.items():
        read = _read(one, program, reader)
        if isinstance(read, str):
            aside[name] = read
        else:
            lines[name] = hypothesis_line(name, read, durations.get(name, 5.0))
    heard = [clip for clip in clips if clip.id in lines]
    if not heard:
        name, why = next(iter(aside.items()))
        raise SessionFailed(
            f"{program.command[0]} gave no text for any of {len(clips)} clips, first {name}: {why}; run it there "
            "by hand, then the same command again"
        )
    # Silence is judged on all probes or on none.
    kept = [lines[clip.id] for clip in heard] + [lines[name] for name in probes if probes.keys() <= lines.keys()]
    write_hypotheses(out, kept, heard, [*skipped, *(clip for clip in clips if clip.id in aside)])
    (out / "aside.json").write_text(json.dumps(aside, indent=1) + "\n", encoding="utf-8")
    describe_program(graphs, target, out)
    return {"clips": str(len(heard)), "aside": str(len(aside)), "tier": board.tier}


def _read(said: ProgramResult, program: BoardProgram, reader: Plugin) -> ProgramOutput | str:
    """Return what a program printed of a clip, or why that does not count."""
    if trouble := said.trouble(program.timeout_s):
        return trouble
    printed: ProgramOutput | None = reader.load().parse(said.text())
    if printed is None:
        return f"it printed no text that can be read; {reader.load().WANTED} is wanted"
    if len(printed.text) > TEXT_CHARACTERS:
        return f"it printed a text of {len(printed.text)} characters, more than anybody says in a window"
    return printed


@stage
def dump_program(
    *,
    program: BoardProgram,
    speech: Path,
    graphs: Path,
    board: BoardRef,
    language: str,
    samples: int,
    seed: int,
    out: Path,
    work: Path,
) -> dict[str, str]:
    """Run a board's own program on `samples` calibration clips, drawn by seed, and keep the dump of each.

    A clip without exactly one dump of the right size is set aside. Raises BadInput when no dump has the right size.
    """
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    tensor = model["harvest"][0]
    shape = next(o["shape"] for o in model["parts"]["encoder"]["outputs"] if o["name"] == tensor)[1:]
    expected, window_s = shape[0] * shape[1] * 4, model["recipe"]["window_s"]
    kept, _ = split_by_window(load_speech(speech), window_s)
    drawn = shuffled(kept, seed)[:samples]
    connected = board.connect()
    with connected.locked():
        sources: dict[str, Any] = {clip.id: clip.audio for clip in drawn}
        said = run_on_board(connected, program, sources, work, language=language, dump_bytes=8 * expected)
    aside = {clip.id: why for clip in drawn if (why := _no_dump(said[clip.id], program, expected))}
    fetched = {clip.id: work / "fetched" / f"{clip.id}.bin" for clip in drawn}
    dumped = _move_dumps(drawn, fetched, aside, out)
    if not dumped:
        check_sizes([path for path in fetched.values() if path.exists()], shape, window_s)  # which knows windows
        name, why = next(iter(aside.items()))
        raise SessionFailed(
            f"{program.command[0]} left no dump of any of {len(drawn)} clips, first {name}: {why}; look at what it "
            "writes there, and give it with --dumps"
        )
    (out / COLLECTED).write_text(json.dumps({"dumped": dumped, "aside": aside}, indent=1) + "\n", encoding="utf-8")
    return {"clips": str(len(dumped)), "aside": str(len(aside)), "tier": board.tier}


def read_excluded_dumps(folder: Path) -> dict[str, str]:
    """Read why clips have no dump among those collected."""
    found: dict[str, str] = json.loads((folder / COLLECTED).read_text(encoding="utf-8"))["aside"]
    return found


def _no_dump(said: ProgramResult, program: BoardProgram, expected: int) -> str:
    if trouble := said.trouble(program.timeout_s, silent=True):
        return trouble
    if len(said.dumps) != 1:
        names = ", ".join(printable(name) for name, _ in said.dumps)
        return f"it wrote {len(said.dumps)} files {program.dumps}{f' ({names})' if names else ''}, one is wanted"
    (name, size) = said.dumps[0]
    return "" if size == expected else f"its {printable(name)} has {size} bytes, {expected} are expected"


def _move_dumps(drawn: list[Clip], fetched: dict[str, Path], aside: dict[str, str], out: Path) -> list[str]:
    dumped = [clip.id for clip in drawn if clip.id not in aside]
    for name in dumped:
        fetched[name].rename(out / f"enc_{name}.bin")
    return dumped
