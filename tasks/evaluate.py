"""Transcribe the evaluation speech with a binary on a board."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.boards.ref import BoardRef
from nightjar.device.pause_splitter import cut
from nightjar.errors import SessionFailed
from nightjar.files import read_json
from nightjar.plugins.registry import Plugin
from nightjar.scoring.normalize import normalise
from nightjar.scoring.streaming import word_chunks
from nightjar.sessions.run import split_excluded
from nightjar.speech.audio import SAMPLE_RATE, load_audio
from nightjar.speech.manifest import Clip, load_speech, split_by_window
from tasks.dask import run_clips
from tasks.hypotheses import EvaluateOptions, read_hypotheses, result_meta, select_clips, write_hypotheses
from tasks.stage import stage

Pieces = Mapping[str, Mapping[str, np.ndarray]]  # by clip id and piece id: int16 waves


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
    """Transcribe with a binary on a board and measure agreement with the tokens of `reference`, another evaluation.

    encoder: another binary that lends its encoder.
    """
    model = read_json(binary / "model.json")
    window_s = model["recipe"]["window_s"]
    clips, skipped = select_clips(load_speech(speech, transcribed=options.transcribed), window_s, options)
    fitting, long = split_by_window(clips, window_s)
    pieces = cut_clips(long, window_s, taken={clip.id for clip in clips})
    forced = watch = None
    if reference is not None:
        fitting_ids = {clip.id for clip in fitting}  # agreement needs the tokens of one session line, not of pieces
        earlier = [line for line in read_hypotheses(reference) if line["id"] in fitting_ids][: options.agree_clips]
        forced = {line["id"]: line.get("path", line["tokens"]) for line in earlier}
        watch = {line["id"]: line["watched"]["ids"] for line in earlier if "watched" in line}
    elif options.watch:
        watch = {clip.id: [] for clip in fitting}
    waves = {name: wave for cuts in pieces.values() for name, wave in cuts.items()}
    waves |= silent_probes(window_s) if options.probes else {}
    by_clip: dict[str, Any] = {"waves": waves, "forced": forced, "watch": watch}
    by_clip |= {"timestamps": True} if options.timestamps else {}
    results = run_clips(
        board, binary, fitting, work, decode=True, language=options.language, encoder=encoder, **by_clip
    )
    lines, failed = split_excluded(results)
    text = words.load().text

    def scored_words(tokens: list[int]) -> list[str]:
        return normalise(text(tokens, model), options.language).split()

    for line in lines:
        line["text"] = text(line["tokens"], model)
        if options.timestamps:
            line["segments"] = words.load().segments(line["tokens"], model, line["audio_s"])
        if "chunk" in model:
            line["word_chunks"] = word_chunks(line["path"], model["chunk"]["rows"], scored_words)
    excluded = excluded_clips(failed, pieces)
    clips = [clip for clip in clips if clip.id not in excluded]
    write_hypotheses(out, join_pieces(lines, clips, pieces), clips, skipped, excluded)
    return result_meta(len(clips), skipped, board.tier, excluded)


def excluded_clips(failed: Mapping[str, str], pieces: Pieces) -> dict[str, str]:
    """Exclude a clip if any of its pieces failed; raises SessionFailed if a silent probe failed: verdicts need all."""
    clip_of = {name: clip for clip, cuts in pieces.items() for name in cuts}
    if probe := next((name for name in failed if name.startswith("probe-") and name not in clip_of), None):
        raise SessionFailed(
            f"the runner fails on silence, {probe}: {failed[probe]}: see the runtime's log on the board, then run "
            "`nightjar board check ALIAS`"
        )
    return {clip_of.get(name, name): why for name, why in failed.items()}


def cut_clips(clips: list[Clip], window_s: float, taken: set[str]) -> dict[str, dict[str, np.ndarray]]:
    """Cut clips at pauses into pieces that fit the window, named `<clip id>.000` and on; `taken`: ids of clips."""
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


def join_pieces(lines: list[dict[str, Any]], clips: list[Clip], pieces: Pieces) -> list[dict[str, Any]]:
    """Join the lines of a clip's pieces into one; return the clips in their order, then the probes."""
    by_id = {line["id"]: line for line in lines}
    joined = [
        _joined_line(clip.id, [by_id[name] for name in pieces[clip.id]]) if clip.id in pieces else by_id[clip.id]
        for clip in clips
    ]
    of_clips = {clip.id for clip in clips} | {name for cuts in pieces.values() for name in cuts}
    return [*joined, *(line for line in lines if line["id"] not in of_clips)]


def _joined_line(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    parts = dict.fromkeys(part for line in lines for part in line["seconds"])
    longest = max(lines, key=lambda line: float(line["audio_s"]))
    segments, start_s = list[dict[str, Any]](), 0.0
    for line in lines:
        for segment in line.get("segments", ()):
            times = {name: round(start_s + segment[name], 2) for name in ("start_s", "end_s")}
            segments.append({**segment, **times})
        start_s += line["audio_s"]
    return {
        "id": name,
        "audio_s": round(sum(line["audio_s"] for line in lines), 4),
        "tokens": [token for line in lines for token in line["tokens"]],
        "steps": sum(line["steps"] for line in lines),
        "capped": any(line["capped"] for line in lines),
        **({"language": longest["language"]} if "language" in longest else {}),
        **({"segments": segments} if "segments" in longest else {}),
        "seconds": {part: round(sum(line["seconds"].get(part, 0.0) for line in lines), 5) for part in parts},
        **next(({"throttled": line["throttled"]} for line in lines if "throttled" in line), {}),
        "agree": None,
        "text": " ".join(line["text"] for line in lines if line["text"]),
    }


def silent_probes(window_s: float) -> dict[str, np.ndarray]:
    """Make int16 waves without speech: any text for them is hallucinated."""
    rng = np.random.default_rng(0)
    samples = int(min(5.0, window_s) * SAMPLE_RATE)
    noise = rng.standard_normal(samples)
    hum = np.sin(2 * np.pi * 50 * np.arange(samples) / SAMPLE_RATE)
    return {
        "probe-silence": np.zeros(samples, np.int16),
        "probe-noise": np.round(30 * noise).astype(np.int16),
        "probe-hum": np.round(100 * hum + 3 * noise).astype(np.int16),
    }
