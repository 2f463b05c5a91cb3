"""What transcribe prints: texts, subtitles or JSON."""

import json
from collections.abc import Iterator
from typing import Any

from nightjar.cli.console import Screen


def show_transcripts(screen: Screen, results: dict[str, Any]) -> None:
    """Print each file's text, or with --format only what belongs into such a file."""
    form = results["format"]
    if form == "json":
        print(json.dumps(results["files"], indent=1, ensure_ascii=False))
    elif form in ("srt", "vtt"):
        print("\n".join(_subtitles(results["files"], form)))
    else:
        for transcript in results["files"]:
            for line in _lines(transcript):
                screen.print(f"{transcript['file']}: {line}") if form is None else print(line)


def _lines(transcript: dict[str, Any]) -> Iterator[str]:
    if "segments" not in transcript:
        yield " ".join(transcript["text"].split()) or "(empty)"
    for segment in transcript.get("segments", ()):
        yield f"[{_clock(segment['start_s'])} --> {_clock(segment['end_s'])}] {segment['text']}"


def _subtitles(files: list[dict[str, Any]], form: str) -> Iterator[str]:
    """Yield the lines of a subtitle file: numbered and with a comma in srt, under a header in vtt."""
    if form == "vtt":
        yield "WEBVTT\n"
    for number, segment in enumerate((segment for each in files for segment in each["segments"]), 1):
        times = f"{_clock(segment['start_s'])} --> {_clock(segment['end_s'])}"
        yield f"{number}\n{times.replace('.', ',')}" if form == "srt" else times
        yield f"{segment['text'].replace('-->', '->')}\n"


def _clock(seconds: float) -> str:
    """Write seconds as hours, minutes, seconds and milliseconds."""
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 3600000:02d}:{milliseconds // 60000 % 60:02d}:{milliseconds / 1000 % 60:06.3f}"
