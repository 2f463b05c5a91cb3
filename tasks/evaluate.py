"""Let a binary, and openai-whisper itself, transcribe the evaluation speech."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from nightjar.audio import load_audio
from nightjar.board import BoardRef
from nightjar.chunk import cut
from nightjar.data import Clip, load_speech, shuffled, split_by_window
from nightjar.errors import BadManifest, BadOptions
from nightjar.job import run_session
from nightjar.plugins import Plugin
from nightjar.progress import tick
from tasks.stage import stage

SAMPLE_RATE_HZ = 16000


class EvaluateOptions(BaseModel, frozen=True):
    """Say which clips are transcribed and what is measured on the way."""

    language: str = Field("en", description="language spoken")
    limit: int | None = Field(None, ge=1, description="only N clips, drawn by their ids")
    long: Literal["skip", "refuse", "chunk"] = Field(
        "skip", description="skip or refuse clips longer than the window, or cut them at pauses and join the pieces"
    )
    transcribed: bool = Field(True, description="whether the speech comes with its text")
    agree_clips: int = Field(64, ge=0, description="clips on which teacher-forced agreement is measured")


@stage
def evaluate(
    *,
    binary: Path,
    speech: Path,
    session: tuple[Plugin, ...],
    words: Plugin,
    board: BoardRef,
    reference: Path | None,
    options: EvaluateOptions,
    out: Path,
    work: Path,
) -> dict[str, str]:
    """Transcribe with a binary on a board; the tokens of `reference`, another evaluation, measure agreement."""
    model = json.loads((binary / "model.json").read_text(encoding="utf-8"))
    window_s = model["recipe"]["window_s"]
    clips, skipped = select_clips(load_speech(speech, transcribed=options.transcribed), window_s, options)
    whole, long = split_by_window(clips, window_s)
    pieces = cut_clips(long, window_s, taken={clip.id for clip in clips})
    forced = None
    if reference is not None:
        known = {clip.id for clip in whole}  # a clip in pieces has no tokens of one session line to be held to
        earlier = [line for line in read_hypotheses(reference) if line["id"] in known][: options.agree_clips]
        forced = {line["id"]: line["tokens"] for line in earlier}
    waves = {name: wave for cuts in pieces.values() for name, wave in cuts.items()} | silent_probes(window_s)
    lines = run_session(
        board.connect(), binary, whole, work, decode=True, language=options.language, forced=forced, waves=waves
    )
    text = words.load().text
    for line in lines:
        line["text"] = text(line["tokens"], model)
    write_hypotheses(out, stitch(lines, clips, pieces), clips, skipped)
    return {"clips": str(len(clips)), "skipped": str(len(skipped)), "tier": board.tier}


@stage
def stock(*, checkpoint: Path, speech: Path, model: Plugin, options: EvaluateOptions, out: Path) -> dict[str, str]:
    """Transcribe with the upstream implementation in its own window: the baseline nothing of ours has touched."""
    original = model.load().load_stock(checkpoint)
    clips, skipped = select_clips(load_speech(speech, transcribed=options.transcribed), original.window_s, options)
    long = {clip.id for clip in split_by_window(clips, original.window_s)[1]}
    lines: list[dict[str, Any]] = []
    for clip in clips:
        transcribe = original.transcribe_long if clip.id in long else original.transcribe
        lines.append({"id": clip.id, **transcribe(clip.audio, options.language)})
        tick(len(lines), len(clips))
    write_hypotheses(out, lines, clips, skipped)
    return {"clips": str(len(clips)), "skipped": str(len(skipped)), "tier": "host"}


def select_clips(clips: list[Clip], window_s: float, options: EvaluateOptions) -> tuple[list[Clip], list[Clip]]:
    """Draw `limit` clips and part those longer than the window from them, unless they are to be cut.

    Raises BadOptions when clips are too long and `long` is "refuse", BadManifest when none is left.
    """
    if options.limit is not None:
        clips = shuffled(clips, seed=0)[: options.limit]  # sorted ids would take one speaker
    if options.long == "chunk":
        return clips, []
    kept, skipped = split_by_window(clips, window_s)
    if skipped and options.long == "refuse":
        raise BadOptions(
            f"{len(skipped)} clips are longer than the {window_s:g} s window, first {skipped[0].id} with "
            f"{skipped[0].duration_s:.1f} s: pass --long skip or --long chunk, or a larger --window"
        )
    if not kept:
        raise BadManifest(
            f"all {len(skipped)} clips are longer than the {window_s:g} s window: give shorter speech, "
            "or pass --long chunk"
        )
    return kept, skipped


def cut_clips(clips: list[Clip], window_s: float, taken: set[str]) -> dict[str, dict[str, np.ndarray]]:
    """Cut clips at pauses into int16 waves that fit the window, by clip and by a piece's id: `<clip id>.000` and on.

    `taken` are the ids that no piece may have.
    """
    pieces: dict[str, dict[str, np.ndarray]] = {}
    for clip in clips:
        wave = load_audio(clip.audio)
        ranges = cut(wave, window_s)
        names = [f"{clip.id}.{number:03d}" for number in range(len(ranges))]
        while not taken.isdisjoint(names):  # another clip may be called a.000
            names = [f"{name}_" for name in names]
        taken = taken.union(names)
        pieces[clip.id] = {name: wave[start:end] for name, (start, end) in zip(names, ranges, strict=True)}
    return pieces


def stitch(
    lines: list[dict[str, Any]], clips: list[Clip], pieces: dict[str, dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Make one line of a clip's pieces' lines; the clips come in their order, then what is no clip (the probes)."""
    by_id = {line["id"]: line for line in lines}
    clip_lines = [
        _joined(clip.id, [by_id.pop(name) for name in pieces[clip.id]]) if clip.id in pieces else by_id.pop(clip.id)
        for clip in clips
    ]
    return [*clip_lines, *by_id.values()]


def _joined(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    parts = dict.fromkeys(part for line in lines for part in line["seconds"])
    return {
        "id": name,
        "audio_s": round(sum(line["audio_s"] for line in lines), 4),
        "tokens": [token for line in lines for token in line["tokens"]],
        "steps": sum(line["steps"] for line in lines),
        "capped": any(line["capped"] for line in lines),
        "seconds": {part: round(sum(line["seconds"].get(part, 0.0) for line in lines), 5) for part in parts},
        "agree": None,
        "text": " ".join(line["text"] for line in lines if line["text"]),
    }


def silent_probes(window_s: float) -> dict[str, np.ndarray]:
    """Make int16 waves without speech: what a recogniser says to them is hallucinated."""
    rng = np.random.default_rng(0)
    samples = int(min(5.0, window_s) * SAMPLE_RATE_HZ)
    noise = rng.standard_normal(samples)
    hum = np.sin(2 * np.pi * 50 * np.arange(samples) / SAMPLE_RATE_HZ)
    return {
        "probe-silence": np.zeros(samples, np.int16),
        "probe-noise": np.round(30 * noise).astype(np.int16),
        "probe-hum": np.round(100 * hum + 3 * noise).astype(np.int16),
    }


def write_hypotheses(out: Path, lines: list[dict[str, Any]], clips: list[Clip], skipped: list[Clip]) -> None:
    """Write `hypotheses.jsonl`, a line per clip with its reference beside it, and `skipped.json`."""
    by_id = {clip.id: clip for clip in clips}
    with (out / "hypotheses.jsonl").open("w", encoding="utf-8") as file:
        for line in lines:
            clip = by_id.get(line["id"])
            known = {"reference": clip.text, "speaker": clip.speaker} if clip else {"reference": "", "speaker": None}
            file.write(json.dumps({**line, **known, "probe": clip is None}, ensure_ascii=False) + "\n")
    (out / "skipped.json").write_text(json.dumps([clip.id for clip in skipped]), encoding="utf-8")


def read_hypotheses(folder: Path) -> list[dict[str, Any]]:
    """Read what `write_hypotheses` wrote."""
    text = (folder / "hypotheses.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
