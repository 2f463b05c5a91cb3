"""A random Whisper made ready for the real toolkit, and how far its simulator is from float."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from models.whisper import decode
from models.whisper.calibrate import CalibrationOptions, calibrate
from models.whisper.export import export
from nightjar.plugins.recipe import Recipe
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip
from nightjar.toolchains.environment import Toolchain
from targets import rknn as target
from targets.onnx.runner import open_runner

FP, INT8 = target.Options(), target.Options(precision="int8", samples=4)


def _clip(folder: Path, number: int) -> Clip:
    path = folder / f"{number}.wav"
    sf.write(path, np.cumsum(np.random.default_rng(number).normal(size=32000)) * 1e-3, 16000)
    return Clip(id=str(number), audio=path, text="", duration_s=2.0, speaker=str(number))


def prepare(checkpoint: Path, folder: Path, **recipe: Any) -> Path:
    """Export, harvest and calibrate into graphs/, hidden/ and calibration/."""
    graphs, clips = folder / "graphs", [_clip(folder, number) for number in range(2)]
    export(checkpoint, Recipe(window_s=10, decoder_length=64, **recipe), graphs)
    model = json.loads((graphs / "model.json").read_text())
    runner = open_runner(graphs, model["parts"], {"threads": 1})
    (folder / "hidden").mkdir()
    for clip in clips:
        features = decode.features(load_audio(clip.audio).astype(np.float32) / 32768, model)
        np.save(
            folder / "hidden" / f"{clip.id}.hidden.npy",
            decode.encode(runner, features, model)["hidden"][0].astype(np.float16),
        )
    options = CalibrationOptions(samples=4, decoder_clips=2)
    calibrate(graphs, folder / "hidden", clips, options, runner, folder / "calibration")
    return folder


def parts_of(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())["parts"]
    return found


def simulate(sdk: Toolchain, binary: Path, folder: Path, scratch: Path, limit: int = 3) -> dict[str, float]:
    """Return per part the worst SNR in dB of any output over the calibration samples, against float onnxruntime."""
    samples = CalibrationSet.open(folder / "calibration")
    exact = open_runner(folder / "graphs", json.loads((folder / "graphs" / "model.json").read_text())["parts"])
    scratch.mkdir(exist_ok=True)
    listed: dict[str, list[dict[str, str]]] = {}
    for part in parts_of(binary):
        for number, sample in enumerate(itertools.islice(samples.samples(part), limit)):
            files = {side: str(scratch / f"{part}.{number}.{side}.npz") for side in ("in", "out")}
            np.savez(files["in"], **sample)
            listed.setdefault(part, []).append(files)
    job = {"do": "run", "binary": str(binary), "samples": listed}
    assert sdk.call("tests.targets.rknn.simulated", job, scratch, 120)["printed"] == ""
    worst = {}
    for part, files_of in listed.items():
        found = []
        for files in files_of:
            wanted, got = exact.run(part, dict(np.load(files["in"]))), dict(np.load(files["out"]))
            assert {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in got.items()}
            found += [_snr_db(wanted[name], got[name]) for name in wanted]
        worst[part] = min(found)
    return worst


def _snr_db(exact: np.ndarray, found: np.ndarray) -> float:
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((exact**2).sum() / max(((exact - found) ** 2).sum(), 1e-30)))


def copy_parts(graphs: Path, out: Path, *parts: str) -> None:
    """Copy graphs with some of their parts."""
    shutil.copytree(graphs, out)
    model = json.loads((graphs / "model.json").read_text())
    model["parts"] = {part: model["parts"][part] for part in parts}
    (out / "model.json").write_text(json.dumps(model))
