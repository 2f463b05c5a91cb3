"""Make the calibration set: encoder inputs, and decoder inputs of real decode steps over harvested hidden states."""

import json
from pathlib import Path

from nightjar.calibration import CalibrationSet
from nightjar.data import load_speech, split_by_window
from nightjar.plugins import Plugin
from tasks.stage import stage


@stage
def calibrate(
    *,
    reference: Path,
    hidden: Path,
    speech: Path,
    model: Plugin,
    runner: Plugin,
    samples: int,
    seed: int,
    language: str,
    out: Path,
) -> dict[str, str]:
    """Sample up to `samples` inputs per part; the decode steps come from the float graphs on the host (`reference`)."""
    module = model.load()
    description = json.loads((reference / "model.json").read_text(encoding="utf-8"))
    parts = json.loads((reference / "binary.json").read_text(encoding="utf-8"))["parts"]
    clips, _ = split_by_window(load_speech(speech), description["recipe"]["window_s"])
    options = module.CalibrationOptions(samples=samples, seed=seed, language=language)
    opened = runner.load().open_runner(reference, parts)
    try:
        module.calibrate(reference, hidden, clips, options, opened, out)
    finally:
        opened.close()
    made = CalibrationSet.open(out)
    return {part: str(made.count(part)) for part in made.parts}
