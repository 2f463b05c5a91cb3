"""Take what a board's own program printed as hypotheses, in place of a session."""

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


class PrintedFiles(InputFiles, frozen=True):
    """Name a program's outputs, whose names say which clip each is of."""

    def identity(self) -> dict[str, str]:
        """Return what enters the key."""
        return {path.stem: sha256 for path, sha256 in zip(self.paths, self.sha256, strict=True)}


def reader(target: str, files: InputFiles) -> Plugin | None:
    """Return the module that reads a target's programs' output, if that is what these files are."""
    said = all(path.suffix in SUFFIXES for path in files.paths)
    return plugin("targets", target, "printed") if said and module_file(f"targets.{target}.printed") else None


@stage
def read_printed(
    *, outputs: PrintedFiles, speech: Path, graphs: Path, reader: Plugin, target: str, out: Path
) -> dict[str, str]:
    """Write hypotheses of outputs, each named by its clip's id, and a binary.json that says where they come from."""
    clips = {clip.id: clip for clip in load_speech(speech)}
    lines: list[dict[str, Any]] = []
    for path in outputs.paths:
        if path.stem not in clips:
            raise BadInput(
                f"{path} is of no clip of the test set, which has {', '.join(list(clips)[:3])}, …: "
                "name each output by its clip's id, then run `nightjar evaluate` again"
            )
        said = reader.load().parse(path.read_text(encoding="utf-8", errors="replace"))
        if said is None:
            raise BadInput(
                f"{path} holds no text: give {reader.load().WANTED}, one file per clip, to `nightjar evaluate`"
            )
        lines.append(hypothesis_line(path.stem, said, clips[path.stem].duration_s))
    heard = [clips[line["id"]] for line in lines]
    write_hypotheses(out, lines, heard, [clip for clip in clips.values() if clip not in heard])
    describe_program(graphs, target, out)
    return {"clips": str(len(lines))}


def hypothesis_line(name: str, said: ProgramOutput, duration_s: float) -> dict[str, Any]:
    """Make a line of hypotheses of what a program printed."""
    seconds = {} if said.seconds is None else {"total": said.seconds}
    line = {"id": name, "text": said.text, "tokens": [], "steps": 0, "capped": False, "agree": None}
    return {**line, "seconds": seconds, "audio_s": said.audio_s or duration_s}


def describe_program(graphs: Path, target: str, out: Path) -> None:
    """Write model.json and a binary.json that says that a program was heard, whose parts nobody knows."""
    shutil.copyfile(graphs / "model.json", out / "model.json")
    description = {"target": target, "precision": "as printed", "parts": {}}
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
