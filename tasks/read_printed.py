"""Read the output of a board's own program as hypotheses, instead of running a session."""

import json
import shutil
from pathlib import Path
from typing import Any

from nightjar.errors import BadInput
from nightjar.plugins.program_output import ProgramOutput
from nightjar.plugins.registry import Plugin, plugin
from nightjar.speech.manifest import load_speech
from nightjar.store.fingerprint import module_file
from tasks.adopt import InputFiles
from tasks.hypotheses import write_hypotheses
from tasks.stage import stage

SUFFIXES = (".txt", ".log")


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
