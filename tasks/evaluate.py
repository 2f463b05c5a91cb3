"""Let a binary transcribe the evaluation speech on a board."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.boards.ref import BoardRef
from nightjar.device.pause_splitter import cut
from nightjar.errors import SessionFailed
from nightjar.plugins.registry import Plugin
from nightjar.scoring.normalize import normalise
from nightjar.scoring.streaming import word_chunks
from nightjar.sessions.run import split_excluded
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, load_speech, split_by_window
from tasks.dask import run_clips
from tasks.hypotheses import EvaluateOptions, excluded_meta, read_hypotheses, select_clips, write_hypotheses
from tasks.stage import stage

SAMPLE_RATE_HZ = 16000


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
    encoder: Path | None = None,
) -> dict[str, str]:
    """Transcribe with a binary on a board; the tokens of `reference`, another evaluation, measure agreement.

    encoder: another binary that lends its encoder.
    """
    model = json.loads((binary / "model.json").read_text(encoding="utf-8"))
    window_s = model["recipe"]["window_s"]
    clips, skipped = select_clips(load_speech(speech, transcribed=options.transcribed), window_s, options)
    whole, long = split_by_window(clips, window_s)
    pieces = cut_clips(long, window_s, taken={clip.id for clip in clips})
    forced = watch = None
    if reference is not None:
        known = {clip.id for clip in whole}  # a clip in pieces has no tokens of one session line to be held to
        earlier = [line for line in read_hypotheses(reference) if line["id"] in known][: options.agree_clips]
        forced = {line["id"]: line.get("path", line["tokens"]) for line in earlier}
        watch = {line["id"]: line["watched"]["ids"] for line in earlier if "watched" in line}
    elif options.watch:
        watch = {clip.id: [] for clip in whole}
    waves = {name: wave for cuts in pieces.values() for name, wave in cuts.items()} | silent_probes(window_s)
    heard = run_clips(
        board,
        binary,
        whole,
        work,
        decode=True,
        language=options.language,
        forced=forced,
        waves=waves,
        watch=watch,
        encoder=encoder,
    )
    lines, aside = split_excluded(heard)
    text = words.load().text
    for line in lines:
        line["text"] = text(line["tokens"], model)
        if "chunk" in model:
            said = partial(_scored, text, model, options.language)
            line["word_chunks"] = word_chunks(line["path"], model["chunk"]["rows"], said)
    aside = whole_clips(aside, pieces)
    clips = [clip for clip in clips if clip.id not in aside]
    write_hypotheses(out, stitch(lines, clips, pieces), clips, skipped, aside)
    return {"clips": str(len(clips)), "skipped": str(len(skipped)), "tier": board.tier} | excluded_meta(aside)


def _scored(text: Any, model: Any, language: str, tokens: list[int]) -> list[str]:
    return normalise(text(tokens, model), language).split()


def whole_clips(aside: Mapping[str, str], pieces: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, str]:
    """Set a clip aside with any piece of it; raises SessionFailed for a silent probe, which no verdict can lack."""
    owner = {name: clip for clip, cuts in pieces.items() for name in cuts}
    if probe := next((name for name in aside if name.startswith("probe-") and name not in owner), None):
        raise SessionFailed(f"the runner fails on silence, {probe}: {aside[probe]}; look at what the board runs")
    return {owner.get(name, name): why for name, why in aside.items()}


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
    wanted = {clip.id for clip in clips}
    for clip, cuts in pieces.items():
        if clip not in wanted:  # set aside for one of its pieces
            for name in cuts:
                by_id.pop(name, None)
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
        **next(({"throttled": line["throttled"]} for line in lines if "throttled" in line), {}),
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
