"""Make the calibration set: real inputs of every part, the decoder's from decode steps over harvested states."""

import json
import logging
from pathlib import Path

from pydantic import BaseModel

from nightjar.files import read_json
from nightjar.plugins.registry import Plugin
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.speech.manifest import load_speech, split_by_window
from tasks.stage import stage

log = logging.getLogger(__name__)


def list_datasets(calibration: Path) -> None:
    """Write dataset.txt for each part whose samples are whole files, with this machine's paths.

    A part with KV caches is left out: step by step they would take a hundred times the set's space. A target that needs
    them calls `CalibrationSet.write_dataset`.
    """
    if any(character.isspace() for character in str(calibration.resolve())):
        log.info("no dataset.txt: it cannot quote the white space in %s", calibration)
        return
    calibration_set = CalibrationSet.open(calibration)
    for part in calibration_set.parts:
        samples = calibration_set.index.parts[part].samples
        listed = calibration / "dataset" / part / "dataset.txt"
        here = listed.is_file() and listed.read_text(encoding="utf-8").startswith(str(calibration.resolve()))
        if not here and all(ref.rows is None for ref in samples[0].values()):
            calibration_set.write_dataset(part)


@stage(view=list_datasets)
def calibrate(
    *,
    reference: Path,
    hidden: Path,
    speech: Path,
    model: Plugin,
    runner: Plugin,
    options: BaseModel,
    out: Path,
) -> dict[str, str]:
    """Write the calibration set of each part; decode steps come from the float graphs on the host (`reference`)."""
    module = model.load()
    parts = read_json(reference / "binary.json")["parts"]
    clips, _ = split_by_window(load_speech(speech), read_json(reference / "model.json")["recipe"]["window_s"])
    if module.REQUIRES_HARVEST:  # a clip may have been excluded
        listed = (hidden / "clips.jsonl").read_text(encoding="utf-8").split("\n")
        harvested = {json.loads(line) for line in listed if line}
        clips = [clip for clip in clips if clip.id in harvested]
    # A stream's chunk is too little work for two cores: clips run in parallel instead, with one thread each.
    opened = runner.load().open_runner(reference, parts, {} if module.REQUIRES_HARVEST else {"threads": 1})
    try:
        module.calibrate(reference, hidden, clips, options, opened, out, lanes=parts["decoder"].get("lanes", 1))
    finally:
        opened.close()
    calibration_set = CalibrationSet.open(out)
    return {part: str(calibration_set.count(part)) for part in calibration_set.parts}
