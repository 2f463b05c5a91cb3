"""Hypotheses: which clips are transcribed, and the files with the results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from nightjar.errors import BadManifest, BadOptions
from nightjar.files import read_json
from nightjar.speech.manifest import Clip, shuffled, split_by_window


class EvaluateOptions(BaseModel, frozen=True):
    """Which clips are transcribed and what is measured."""

    language: str = Field("en", description="language spoken, or auto")
    task: str = Field("transcribe", description="what stock is asked to do; graphs have it in their recipe")
    timestamps: bool = Field(False, description="sample Whisper's timestamps, and split the text there")
    limit: int | None = Field(None, ge=1, description="only N clips, drawn by their ids")
    long: Literal["skip", "refuse", "chunk"] = Field(
        "skip", description="skip or reject clips longer than the window, or cut them at pauses and join the pieces"
    )
    transcribed: bool = Field(True, description="whether the speech has reference texts")
    probes: bool = Field(False, description="whether silent probes are heard too, for a verdict")
    watch: bool = Field(False, description="keep the logits of the float model's likeliest tokens at each step")
    agree_clips: int = Field(64, ge=0, description="clips on which teacher-forced agreement is measured")


def select_clips(clips: list[Clip], window_s: float, options: EvaluateOptions) -> tuple[list[Clip], list[Clip]]:
    """Draw `limit` clips; return those to transcribe, and those skipped because they are longer than the window.

    Raises BadOptions if clips are too long and `long` is "refuse", BadManifest if none is left.
    """
    if options.limit is not None:
        clips = shuffled(clips, seed=0)[: options.limit]  # the first sorted ids would be of one speaker
    if options.long == "chunk":
        return clips, []
    selected, skipped = split_by_window(clips, window_s)
    if skipped and options.long == "refuse":
        raise BadOptions(
            f"{len(skipped)} clips are longer than the {window_s:g} s window, first {skipped[0].id} with "
            f"{skipped[0].duration_s:.1f} s: pass --long skip or --long chunk, "
            "or (port, transcribe) a larger --window"
        )
    if not selected:
        raise BadManifest(
            f"all {len(skipped)} clips are longer than the {window_s:g} s window: give shorter speech, "
            "or pass --long chunk to port, evaluate or transcribe"
        )
    return selected, skipped


def result_meta(clips: int, skipped: list[Clip], tier: str, excluded: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the record's meta: counts, the tier, and how many clips are excluded with the first one's reason."""
    meta = {"clips": str(clips), "skipped": str(len(skipped)), "tier": tier}
    return meta | ({"aside": f"{len(excluded)}: {next(iter(excluded.values()))}"} if excluded else {})


def write_hypotheses(
    out: Path, lines: list[dict[str, Any]], clips: list[Clip], skipped: list[Clip], excluded: Mapping[str, str] = {}
) -> None:
    """Write `hypotheses.jsonl` (a line per clip with its reference text), `skipped.json` and `aside.json`."""
    by_id = {clip.id: clip for clip in clips}
    with (out / "hypotheses.jsonl").open("w", encoding="utf-8") as file:
        for line in lines:
            clip = by_id.get(line["id"])
            known = {"reference": clip.text, "speaker": clip.speaker} if clip else {"reference": "", "speaker": None}
            file.write(json.dumps({**line, **known, "probe": clip is None}, ensure_ascii=False) + "\n")
    (out / "skipped.json").write_text(json.dumps([clip.id for clip in skipped]), encoding="utf-8")
    write_excluded(out, excluded)


def write_excluded(out: Path, excluded: Mapping[str, str]) -> None:
    """Write `aside.json`, the reason by clip id, if any clip is excluded."""
    if excluded:
        (out / "aside.json").write_text(json.dumps(excluded, ensure_ascii=False), encoding="utf-8")


def read_excluded(folder: Path) -> dict[str, str]:
    """Read the excluded clips: the reason by clip id."""
    path = folder / "aside.json"
    return dict(read_json(path)) if path.exists() else {}


def read_hypotheses(folder: Path) -> list[dict[str, Any]]:
    """Read what `write_hypotheses` wrote."""
    text = (folder / "hypotheses.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
