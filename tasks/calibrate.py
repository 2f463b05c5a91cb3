"""Make the calibration set: encoder inputs, and decoder inputs of real decode steps over harvested hidden states."""

from pathlib import Path

import targets.onnx.runner
from nightjar.data import load_speech
from nightjar.plugins import Plugin
from tasks.stage import stage


@stage
def calibrate(
    *, graphs: Path, reference: Path, hidden: Path, speech: Path, model: Plugin, samples: int, seed: int, out: Path
) -> dict[str, str]:
    """Sample `samples` inputs per part; the decode steps come from the float graphs on the host (`reference`)."""
    raise NotImplementedError
