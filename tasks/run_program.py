"""A board's own program: hypotheses or dumps of a run on speech, or hypotheses from output that it gave before."""

import json
import shutil
from pathlib import Path
from typing import Any

from nightjar.boards.ref import BoardRef
from nightjar.errors import BadInput, SessionFailed, printable
from nightjar.files import read_json
from nightjar.plugins.program_output import ProgramOutput
from nightjar.plugins.registry import Plugin, plugin
from nightjar.sessions.board_program import BoardProgram, ProgramResult
from nightjar.sessions.board_program import run_program as run_on_board
from nightjar.speech.manifest import load_speech, shuffled, split_by_window
from nightjar.store.fingerprint import module_file
from tasks.adopt import InputFiles
from tasks.evaluate import silent_probes
from tasks.hypotheses import EvaluateOptions, select_clips, write_hypotheses
from tasks.import_dumps import COLLECTED, check_sizes, harvested_tensor
from tasks.stage import stage

TEXT_CHARACTERS = 10_000  # twenty times the text of a window of speech
SUFFIXES = (".txt", ".log")  # of output that a program gave before


@stage
def run_program(
    *,
    program: BoardProgram,
    files: InputFiles,
    speech: Path,
    graphs: Path,
    reader: Plugin,
    board: BoardRef,
    target: str,
    options: EvaluateOptions,
    out: Path,
    work: Path,
) -> dict[str, str]:
    """Run a board's own program on every clip and the silent probes, and parse its output; see docs/boards.md."""
    window_s = read_json(graphs / "model.json")["recipe"]["window_s"]
    clips, skipped = select_clips(load_speech(speech), window_s, options)
    probes = silent_probes(window_s)
    connected = board.connect()
    with connected.locked():
        sources: dict[str, Any] = {clip.id: clip.audio for clip in clips} | probes
        binary = {path.name: path for path in files.paths}
        results = run_on_board(connected, program, sources, work, language=options.language, binary=binary)
    lines, excluded = dict[str, dict[str, Any]](), dict[str, str]()
    durations = {clip.id: clip.duration_s for clip in clips}
    for name, result in results.items():
        output = _parse(result, program, reader)
        if isinstance(output, str):
            excluded[name] = output
        else:
            lines[name] = hypothesis_line(name, output, durations.get(name, 5.0))
    transcribed = [clip for clip in clips if clip.id in lines]
    if not transcribed:
        problem = f"{program.command[0]} gave no text for any of {len(clips)} clips"
        raise _all_failed(problem, excluded, "run it there by hand, then the same command again")
    # Silence is judged on all probes or on none.
    kept = [lines[clip.id] for clip in transcribed] + [lines[name] for name in probes if probes.keys() <= lines.keys()]
    write_hypotheses(out, kept, transcribed, [*skipped, *(clip for clip in clips if clip.id in excluded)], excluded)
    describe_program(graphs, target, out)
    return {"clips": str(len(transcribed)), "aside": str(len(excluded)), "tier": board.tier}


def _parse(result: ProgramResult, program: BoardProgram, reader: Plugin) -> ProgramOutput | str:
    """Return the text that a program printed for a clip, or why it does not count."""
    if failure := result.failure(program.timeout_s):
        return failure
    output: ProgramOutput | None = reader.load().parse(result.text())
    if output is None:
        return f"it printed no text that can be read; {reader.load().WANTED} is wanted"
    if len(output.text) > TEXT_CHARACTERS:
        return f"it printed a text of {len(output.text)} characters, more than a window of speech can have"
    return output


def _all_failed(problem: str, excluded: dict[str, str], remedy: str) -> SessionFailed:
    name, reason = next(iter(excluded.items()))
    return SessionFailed(f"{problem}, first {name}: {reason}; {remedy}")


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
    """Run a board's own program on `samples` calibration clips, drawn by seed, and store the dump of each.

    A clip without exactly one dump of the right size is excluded. Raises BadInput when no dump has the right size.
    """
    _, shape, window_s = harvested_tensor(graphs)
    expected_bytes = 4 * shape[0] * shape[1]
    fitting, _ = split_by_window(load_speech(speech), window_s)
    drawn = shuffled(fitting, seed)[:samples]
    connected = board.connect()
    with connected.locked():
        sources: dict[str, Any] = {clip.id: clip.audio for clip in drawn}
        results = run_on_board(connected, program, sources, work, language=language, dump_bytes=8 * expected_bytes)
    excluded = {clip.id: reason for clip in drawn if (reason := _no_dump(results[clip.id], program, expected_bytes))}
    fetched = {clip.id: work / "fetched" / f"{clip.id}.bin" for clip in drawn}
    dumped = [clip.id for clip in drawn if clip.id not in excluded]
    for name in dumped:
        fetched[name].rename(out / f"enc_{name}.bin")
    if not dumped:
        check_sizes([path for path in fetched.values() if path.exists()], shape, window_s)  # it names the window
        problem = f"{program.command[0]} left no dump of any of {len(drawn)} clips"
        raise _all_failed(problem, excluded, "check what it writes there, and give it with --dumps")
    (out / COLLECTED).write_text(json.dumps({"dumped": dumped, "aside": excluded}, indent=1) + "\n", encoding="utf-8")
    return {"clips": str(len(dumped)), "aside": str(len(excluded)), "tier": board.tier}


def _no_dump(result: ProgramResult, program: BoardProgram, expected_bytes: int) -> str:
    if failure := result.failure(program.timeout_s, silent=True):
        return failure
    if len(result.dumps) != 1:
        names = ", ".join(printable(name) for name, _ in result.dumps)
        return f"it wrote {len(result.dumps)} files {program.dumps}{f' ({names})' if names else ''}, one is wanted"
    (name, size) = result.dumps[0]
    return "" if size == expected_bytes else f"its {printable(name)} has {size} bytes, {expected_bytes} are expected"


def reader(target: str, files: InputFiles) -> Plugin | None:
    """Return the module that parses the output of a target's programs, where these files are such output."""
    printed = all(path.suffix in SUFFIXES for path in files.paths)
    return plugin("targets", target, "printed") if printed and module_file(f"targets.{target}.printed") else None


@stage
def read_printed(
    *, outputs: InputFiles, speech: Path, graphs: Path, reader: Plugin, target: str, out: Path
) -> dict[str, str]:
    """Write the hypotheses of output files, each named by its clip, and a binary.json that names their origin."""
    clips = {clip.id: clip for clip in load_speech(speech)}
    lines: list[dict[str, Any]] = []
    for path in outputs.paths:
        if path.stem not in clips:
            raise BadInput(
                f"{path} belongs to no clip of the test set, which has {', '.join(list(clips)[:3])}, …: "
                "name each output by its clip's id, then run `nightjar evaluate` again"
            )
        output = reader.load().parse(path.read_text(encoding="utf-8", errors="replace"))
        if output is None:
            raise BadInput(
                f"{path} has no text: give {reader.load().WANTED}, one file per clip, to `nightjar evaluate`"
            )
        lines.append(hypothesis_line(path.stem, output, clips[path.stem].duration_s))
    found = [clips[line["id"]] for line in lines]
    write_hypotheses(out, lines, found, [clip for clip in clips.values() if clip not in found])
    describe_program(graphs, target, out)
    return {"clips": str(len(lines))}


def hypothesis_line(name: str, output: ProgramOutput, duration_s: float) -> dict[str, Any]:
    """Return the line of hypotheses.jsonl for a program's output."""
    seconds = {} if output.seconds is None else {"total": output.seconds}
    line = {"id": name, "text": output.text, "tokens": [], "steps": 0, "capped": False, "agree": None}
    return {**line, "seconds": seconds, "audio_s": output.audio_s or duration_s}


def describe_program(graphs: Path, target: str, out: Path) -> None:
    """Write model.json, and the binary.json of a program whose parts are unknown."""
    shutil.copyfile(graphs / "model.json", out / "model.json")
    description = {"target": target, "precision": "as printed", "parts": {}}
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
