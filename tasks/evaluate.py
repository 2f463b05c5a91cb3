"""Let a binary, and openai-whisper itself, transcribe the evaluation speech."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from nightjar.board import BoardRef
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
    long: str = Field("skip", description="skip or refuse clips longer than the window")
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
    clips, skipped = select_clips(
        load_speech(speech, transcribed=options.transcribed), model["recipe"]["window_s"], options
    )
    probes = silent_probes(model["recipe"]["window_s"])
    forced = None
    if reference is not None:
        earlier = [line for line in read_hypotheses(reference) if not line["probe"]][: options.agree_clips]
        forced = {line["id"]: line["tokens"] for line in earlier}
    lines = run_session(
        board.connect(), binary, clips, work, decode=True, language=options.language, forced=forced, probes=probes
    )
    text = words.load().text
    for line in lines:
        line["text"] = text(line["tokens"], model)
    write_hypotheses(out, lines, clips, skipped)
    return {"clips": str(len(clips)), "skipped": str(len(skipped)), "tier": board.tier}


@stage
def stock(*, checkpoint: Path, speech: Path, model: Plugin, options: EvaluateOptions, out: Path) -> dict[str, str]:
    """Transcribe with the upstream implementation in its own window: the baseline nothing of ours has touched."""
    original = model.load().load_stock(checkpoint)
    clips, skipped = select_clips(load_speech(speech, transcribed=options.transcribed), original.window_s, options)
    lines: list[dict[str, Any]] = []
    for clip in clips:
        lines.append({"id": clip.id, **original.transcribe(clip.audio, options.language)})
        tick(len(lines), len(clips))
    write_hypotheses(out, lines, clips, skipped)
    return {"clips": str(len(clips)), "skipped": str(len(skipped)), "tier": "host"}


def select_clips(clips: list[Clip], window_s: float, options: EvaluateOptions) -> tuple[list[Clip], list[Clip]]:
    """Draw `limit` clips and part those longer than the window from them.

    Raises BadOptions when clips are too long and `long` is "refuse", BadManifest when none is left.
    """
    if options.limit is not None:
        clips = shuffled(clips, seed=0)[: options.limit]  # sorted ids would take one speaker
    kept, skipped = split_by_window(clips, window_s)
    if skipped and options.long == "refuse":
        raise BadOptions(
            f"{len(skipped)} clips are longer than the {window_s:g} s window, first {skipped[0].id} with "
            f"{skipped[0].duration_s:.1f} s: pass --long skip, or a larger --window"
        )
    if not kept:
        raise BadManifest(f"all {len(skipped)} clips are longer than the {window_s:g} s window: give shorter speech")
    return kept, skipped


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
