"""Let the upstream implementation transcribe the evaluation speech."""

from pathlib import Path
from typing import Any

from nightjar.plugins.registry import Plugin
from nightjar.progress import tick
from nightjar.speech.manifest import load_speech, split_by_window
from tasks.hypotheses import EvaluateOptions, select_clips, write_hypotheses
from tasks.stage import stage


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
