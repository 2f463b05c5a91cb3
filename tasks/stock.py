"""Transcribe the evaluation speech with the stock implementation, openai-whisper or sherpa-onnx."""

from pathlib import Path
from typing import Any

from nightjar.plugins.registry import Plugin
from nightjar.progress import tick
from nightjar.speech.manifest import load_speech, split_by_window
from tasks.hypotheses import EvaluateOptions, result_meta, select_clips, write_hypotheses
from tasks.stage import stage


@stage
def stock(*, checkpoint: Path, speech: Path, model: Plugin, options: EvaluateOptions, out: Path) -> dict[str, str]:
    """Transcribe with the stock implementation in its own window: the baseline without any of Nightjar's code."""
    original = model.load().load_stock(checkpoint)
    clips, skipped = select_clips(load_speech(speech, transcribed=options.transcribed), original.window_s, options)
    long = {clip.id for clip in split_by_window(clips, original.window_s)[1]}
    lines: list[dict[str, Any]] = []
    for clip in clips:
        transcribe = original.transcribe_long if clip.id in long else original.transcribe
        lines.append({"id": clip.id, **transcribe(clip.audio, options.language, options.task)})
        tick(len(lines), len(clips))
    write_hypotheses(out, lines, clips, skipped)
    return result_meta(len(clips), skipped, "host")
