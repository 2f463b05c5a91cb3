"""Calibration of Whisper's parts, on a runner that says what it was asked."""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from models.whisper.calibrate import CalibrationOptions, calibrate, choose_steps, decoder_steps
from nightjar.errors import BadInput
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.speech.manifest import Clip

N_CTX, D, LAYERS, LENGTH, VOCAB = 10, 4, 2, 40, 30
SOT, NO_TIMESTAMPS, EOT = 20, 21, 22


class Speaker:
    """Stand in for the float graphs: says as many words as the first hidden value, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, np.ndarray]] = []
        self._clip: Any = None
        self._steps = 0

    def run(self, part: str, inputs: dict[str, Any], constant: Any = {}) -> dict[str, np.ndarray]:  # noqa: B006
        if part == "cross":
            names = [f"cross_{kind}_{i}" for i in range(LAYERS) for kind in "kv"]
            return {name: inputs["hidden"] + number for number, name in enumerate(names)}
        assert part == "decoder"
        self.asked.append({name: np.array(value) for name, value in {**inputs, **constant}.items()})
        first = constant["audio"] if "audio" in constant else constant["cross_k_0"]
        if first is not self._clip:
            self._clip, self._steps = first, 0
        self._steps += 1
        prefill = 1 if "cross_k_0" in constant else 0
        logits = np.zeros((1, 1, VOCAB), np.float32)
        logits[..., EOT if self._steps - prefill > first[0, 0, 0] else self._steps % 10] = 1
        new = {
            f"new_{kind}_{i}": np.full((1, 1, D), self._steps + i / 10, np.float32)
            for i in range(LAYERS)
            for kind in "kv"
        }
        return {"logits": logits, "out": np.repeat(logits, 12, axis=1), **new}


def _inputs(protocol: str, host: bool) -> list[dict[str, Any]]:
    n = {"window": 12, "static": LENGTH, "cached": 1}[protocol]
    shapes: dict[str, tuple[int, ...]] = {}
    if host:
        shapes["embedding"] = (1, n, D)
    elif protocol == "cached":
        shapes |= {"token": (1, 1), "position": (1, 1)}
    else:
        shapes["tokens"] = (1, n)
    if protocol == "cached":
        shapes["mask"] = (1, 1, 1, LENGTH + 1)
        shapes |= {f"self_{kind}_{i}": (1, LENGTH, D) for i in range(LAYERS) for kind in "kv"}
        shapes |= {f"cross_{kind}_{i}": (1, N_CTX, D) for i in range(LAYERS) for kind in "kv"}
    else:
        shapes["audio"] = (1, N_CTX, D)
    if protocol == "static":
        shapes["last"] = (1, 1, LENGTH)
    integers = ("token", "tokens", "position")
    return [{"name": k, "shape": list(v), "dtype": "int64" if k in integers else "float32"} for k, v in shapes.items()]


def _graphs(folder: Path, protocol: str, host: bool = False) -> Path:
    hidden = {"name": "hidden", "shape": [1, N_CTX, D], "dtype": "float32"}
    parts = {"encoder": {"inputs": [{"name": "mel", "shape": [1, 80, 2 * N_CTX], "dtype": "float32"}]}}
    if protocol == "cached":
        parts["cross"] = {"inputs": [hidden]}
    parts["decoder"] = {"inputs": _inputs(protocol, host)}
    dims = {"n_mels": 80, "n_audio_ctx": N_CTX, "n_audio_state": D, "n_text_state": D}
    model = {
        "family": "whisper",
        "dims": {**dims, "n_text_layer": LAYERS, "n_text_ctx": LENGTH, "n_vocab": VOCAB},
        "n_frames": 2 * N_CTX,
        "n_audio_ctx": N_CTX,
        "recipe": {"decoder": protocol, "decoder_length": LENGTH, "host_embedding": host},
        "tokens": {
            **{"sot": SOT, "eot": EOT, "transcribe": 23, "no_timestamps": NO_TIMESTAMPS, "timestamp_begin": 25},
            **{"languages": {}, "suppress": [], "suppress_first": [], "n_vocab": VOCAB},
        },
        "max_tokens": 30,
        "parts": parts,
    }
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(model))
    if host:
        rng = np.random.default_rng(0)
        np.save(folder / "token_embedding.npy", rng.normal(size=(VOCAB, D)).astype(np.float32))
        np.save(folder / "positional_embedding.npy", rng.normal(size=(LENGTH, D)).astype(np.float32))
    return folder


def _speech(folder: Path, words: list[int]) -> list[Clip]:
    """Make a clip and its harvest per number of words."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    clips = []
    for number, count in enumerate(words):
        name = f"clip-{number}"
        sf.write(folder / f"{name}.wav", rng.normal(size=3000) * 0.1, 16000)
        hidden = rng.normal(size=(N_CTX, D))
        hidden[0, 0] = count
        np.save(folder / f"{name}.hidden.npy", hidden.astype(np.float16))
        audio = folder / f"{name}.wav"
        clips.append(Clip(id=name, audio=audio, text="", duration_s=0.2, speaker=f"s{number % 3}"))
    return clips


def _digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


CASES = [(p, h) for p in ("window", "static", "cached") for h in (False, True)]


@pytest.mark.parametrize(("protocol", "host"), CASES)
def test_samples_are_what_the_decoder_was_given_at_every_step(tmp_path: Path, protocol: str, host: bool) -> None:
    graphs, speech = _graphs(tmp_path / "graphs", protocol, host), tmp_path / "speech"
    clips, runner = _speech(speech, [3, 9, 5, 14, 2]), Speaker()
    calibrate(graphs, speech, clips, CalibrationOptions(samples=40), runner, tmp_path / "set")
    found = CalibrationSet.open(tmp_path / "set")
    assert found.count("encoder") == 5
    asked = {_fingerprint(call) for call in runner.asked}
    samples = list(found.samples("decoder"))
    assert len(samples) >= 15
    assert {_fingerprint(sample) for sample in samples} <= asked
    assert len({_fingerprint(sample) for sample in samples}) == len(samples)
    decoder = found.index.coverage["decoder"]
    assert len(decoder["steps_occurring"]) == 14 + 1 + (protocol == "cached")
    assert min(decoder["steps_covered"]) >= 1
    for line in found.write_dataset("decoder").read_text().splitlines():
        shapes = [np.load(path).shape for path in line.split(" ")]
        assert shapes == [spec.shape for spec in found.inputs("decoder")]


def _fingerprint(tensors: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(tensors[n]).tobytes() for n in sorted(tensors))).hexdigest()


@pytest.mark.parametrize("protocol", ["static", "cached"])
def test_the_order_of_the_clips_changes_no_byte_and_the_seed_does(tmp_path: Path, protocol: str) -> None:
    graphs, speech = _graphs(tmp_path / "graphs", protocol), tmp_path / "speech"
    clips = _speech(speech, [3, 9, 5, 14, 2, 7, 8])
    options = CalibrationOptions(samples=6, decoder_clips=4)
    calibrate(graphs, speech, clips, options, Speaker(), tmp_path / "a")
    random.Random(0).shuffle(clips)
    calibrate(graphs, speech, clips, options, Speaker(), tmp_path / "b")
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    calibrate(graphs, speech, clips, options.model_copy(update={"seed": 1}), Speaker(), tmp_path / "c")
    assert _digest(tmp_path / "a") != _digest(tmp_path / "c")


def test_what_is_constant_in_a_clip_lies_there_once(tmp_path: Path) -> None:
    graphs, speech = _graphs(tmp_path / "graphs", "cached"), tmp_path / "speech"
    clips = _speech(speech, [20, 18, 15, 19, 20, 17])
    calibrate(graphs, speech, clips, CalibrationOptions(samples=60, decoder_clips=3), Speaker(), tmp_path / "set")
    names = [path.name for path in (tmp_path / "set").iterdir()]
    assert CalibrationSet.open(tmp_path / "set").count("decoder") > 40
    for kind in ("cross_k_0", "cross_v_1", "self_k_0", "self_v_1"):
        assert sum(kind in name for name in names) == 3
    assert sum(name.startswith("tokens_") for name in names) > 40
    assert sum(name.startswith("audio_") for name in names) == 6


def test_few_samples_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graphs, speech = _graphs(tmp_path / "graphs", "static"), tmp_path / "speech"
    calibrate(graphs, speech, _speech(speech, [3, 4]), CalibrationOptions(), Speaker(), tmp_path / "set")
    (warning,) = CalibrationSet.open(tmp_path / "set").index.warnings
    assert "encoder 2" in warning
    assert warning in caplog.text
    clips = _speech(tmp_path / "many", [12] * 100)
    calibrate(graphs, tmp_path / "many", clips, CalibrationOptions(), Speaker(), tmp_path / "enough")
    assert CalibrationSet.open(tmp_path / "enough").index.warnings == []
    assert CalibrationSet.open(tmp_path / "enough").index.coverage["speakers"] == 3


def test_a_loop_is_no_sample(tmp_path: Path) -> None:
    graphs, speech = _graphs(tmp_path / "graphs", "cached"), tmp_path / "speech"
    clips = _speech(speech, [3, 1000, 5])
    calibrate(graphs, speech, clips, CalibrationOptions(samples=30), Speaker(), tmp_path / "set")
    index = CalibrationSet.open(tmp_path / "set").index
    assert len(index.coverage["decoder"]["steps_occurring"]) == 5 + 2
    assert index.coverage["never_ended"] == 1
    assert any("never end" in warning for warning in index.warnings)


def test_refuses_no_clips_and_a_clip_that_was_not_harvested(tmp_path: Path) -> None:
    graphs, speech = _graphs(tmp_path / "graphs", "static"), tmp_path / "speech"
    clips = _speech(speech, [3, 4])
    with pytest.raises(BadInput, match="no clip of the calibration set fits"):
        calibrate(graphs, speech, [], CalibrationOptions(), Speaker(), tmp_path / "set")
    (speech / "clip-1.hidden.npy").unlink()
    with pytest.raises(BadInput, match=r"'clip-1'.*harvest"):
        calibrate(graphs, speech, clips, CalibrationOptions(), Speaker(), tmp_path / "set")
    np.save(speech / "clip-1.hidden.npy", np.zeros((N_CTX + 1, D), np.float16))
    with pytest.raises(BadInput, match="shape"):
        calibrate(graphs, speech, clips, CalibrationOptions(), Speaker(), tmp_path / "set")


@pytest.mark.parametrize("samples", [1, 7, 50, 90, 400])
def test_every_step_is_taken_once_before_any_is_taken_twice(samples: int) -> None:
    lengths = random.Random(3)
    steps = {f"c{i}": lengths.randint(4, 30) for i in range(30)} | {"long": 60}
    chosen = choose_steps(steps, samples, seed=0)
    times = Counter(step for taken in chosen.values() for step in taken)
    assert sum(times.values()) <= samples
    assert all(step < steps[name] for name, taken in chosen.items() for step in taken)
    assert all(len(set(taken)) == len(taken) for taken in chosen.values())
    if samples < 60:
        assert set(times.values()) == {1}
        assert sum(times.values()) == samples
        assert {0, 59} <= set(times) or samples == 1
    else:
        assert set(times) == set(range(60))


def test_one_long_clip_gives_little_beyond_what_nobody_else_has() -> None:
    steps = {f"c{i}": 10 for i in range(20)} | {"long": 200}
    chosen = choose_steps(steps, 300, seed=0)
    assert sum(map(len, chosen.values())) >= 300 - 200
    assert len(chosen["long"]) == 190
    assert max(len(taken) for name, taken in chosen.items() if name != "long") <= 30


def test_few_decoder_clips_still_have_every_step() -> None:
    results = {f"c{i}": (5 + i, False) for i in range(10)} | {"loop": (224, True)}
    steps = decoder_steps(results, most=2)
    assert steps == {"c9": 14, "c0": 5}
    assert decoder_steps({"loop": (224, True)}, most=2) == {"loop": 224}
