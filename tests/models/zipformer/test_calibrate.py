"""Calibration draws true steps in one pass: the same whatever the order, some of every depth, true states."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.zipformer.calibrate import CalibrationOptions, calibrate, estimate_bytes
from models.zipformer.decode import features
from models.zipformer.stream import initial_states, run_chunk
from nightjar.errors import BadInput, BadOptions
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, load_speech
from tests.models.zipformer.conftest import NANO, Exported, Through


@pytest.fixture(scope="module")
def speech() -> list[Clip]:
    """Some of the shipped calibration clips."""
    return load_speech(NANO / "calibration.jsonl")[:12]


def made(exported: Exported, clips: Sequence[Clip], out: Path, hidden: Path | None = None, **asked: Any) -> Any:
    options = CalibrationOptions(**{"samples": 24, **asked})
    calibrate(exported.graphs, hidden or out.parent / "nothing", clips, options, exported.runner, out)
    return CalibrationSet.open(out)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_every_step_is_the_same_set_in_any_order(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    made(nano, speech, tmp_path / "a", states="full")
    made(nano, speech[::-1], tmp_path / "b", states="full")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.slow
def test_the_same_samples_in_any_order_and_others_by_another_seed(
    nano: Exported, speech: list[Clip], tmp_path: Path
) -> None:
    made(nano, speech, tmp_path / "a")
    made(nano, speech[::-1], tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    made(nano, speech, tmp_path / "c", seed=1)
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_samples_are_true_steps_of_every_depth(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    found = made(nano, speech, tmp_path / "set")
    coverage = found.index.coverage
    assert found.count("encoder") == 24 == sum(coverage["chunks_covered"].values())
    assert coverage["chunks_covered"].keys() == coverage["chunks_occurring"].keys() >= {"first", "second", "5th to 8th"}
    assert min(coverage["chunks_covered"].values()) >= 1
    assert coverage["clips"] == len(speech)
    steps = []  # every step there is, with its true states
    for clip in speech:
        states = initial_states(nano.model)
        for number, x in enumerate(features(load_audio(clip.audio).astype(np.float32) / 32768, nano.model)["x"]):
            steps.append({"x": x[None], **states})
            _, states, _ = run_chunk(nano.runner, x, states, nano.model, number)
    assert len(steps) == coverage["steps"]
    for sample in found.samples("encoder"):  # another number of threads adds in another order on some processors
        assert any(all(np.allclose(sample[name], step[name], atol=1e-3) for name in step) for step in steps)


def test_rows_that_say_something_are_as_many_as_those_that_do_not(
    nano: Exported, speech: list[Clip], tmp_path: Path
) -> None:
    found = made(nano, speech, tmp_path / "set", samples=60)
    said = [nano.runner.run("joiner", sample)["logit"].argmax() != 0 for sample in found.samples("joiner")]
    assert found.count("joiner") == 60
    assert 15 <= sum(said) <= 45
    contexts = [tuple(sample["y"][0].tolist()) for sample in found.samples("decoder")]
    assert len(contexts) == len(set(contexts)) > 1
    decoded = {nano.runner.run("decoder", s)["decoder_out"].tobytes() for s in found.samples("decoder")}
    assert {sample["decoder_out"].tobytes() for sample in found.samples("joiner")} <= decoded


def test_dataset_lists_every_input_on_every_line(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    found = made(nano, speech, tmp_path / "set")
    lines = found.write_dataset("encoder").read_text(encoding="utf-8").splitlines()
    inputs = nano.model["parts"]["encoder"]["inputs"]
    assert len(lines) == 24
    for line in lines:
        arrays = [np.load(path) for path in line.split(" ")]
        assert [(a.shape, a.dtype.name) for a in arrays] == [(tuple(e["shape"]), e["dtype"]) for e in inputs]


def test_a_line_without_an_input_is_refused(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    found = made(nano, speech[:3], tmp_path / "set")
    index = tmp_path / "set" / "calibration.json"
    sample = next(iter(found.index.parts["encoder"].samples))
    index.write_text(index.read_text(encoding="utf-8").replace(sample["cached_key_1"].file, "gone.npy"), "utf-8")
    with pytest.raises(BadInput, match=r"sample 0 of part 'encoder'.*gone.npy"):
        CalibrationSet.open(tmp_path / "set").write_dataset("encoder")
    del found.index.parts["encoder"].samples[1]["cached_conv1_0"]
    with pytest.raises(BadInput, match=r"sample 1 of part 'encoder'.*missing inputs \['cached_conv1_0'\]"):
        found.write_dataset("encoder")


def test_zero_states_are_one_file_each(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    true, zero = (made(nano, speech, tmp_path / states, states=states) for states in ("sampled", "zero"))
    pairs = list(zip(true.samples("encoder"), zero.samples("encoder"), strict=True))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in pairs)  # the same steps
    assert not any(b[name].any() for _, b in pairs for name in b if name != "x")
    sizes = [sum(path.stat().st_size for path in (tmp_path / s).iterdir()) for s in ("sampled", "zero")]
    assert sizes[1] < sizes[0] / 5


def test_full_is_every_step_and_its_size_is_said_before(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    found = made(nano, speech[:2], tmp_path / "full", states="full")
    assert found.count("encoder") == found.index.coverage["steps"]
    names = {ref.file for sample in found.index.parts["encoder"].samples for ref in sample.values()}
    written = sum((tmp_path / "full" / name).stat().st_size for name in names)
    estimated = estimate_bytes(speech[:2], nano.model)
    assert abs(estimated - written) <= 0.05 * written
    with pytest.raises(BadOptions, match=r"takes \d+\.\d GiB, more than 0.0001: calibrate with --calibration-states"):
        made(nano, speech, tmp_path / "more", states="full", full_gib=0.0001)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("kind", ["librosa", "waveform-dc"])
def test_other_features_are_others(kind: str, nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    ours, others = (made(nano, speech, tmp_path / name, features=name) for name in ("kaldi", kind))
    first, second = (next(each.samples("encoder"))["x"] for each in (ours, others))
    assert first.shape == second.shape
    assert 0.01 < np.abs(first - second).mean() < 5


def test_the_joiner_sees_what_the_board_gave(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    clip, hidden = speech[0], tmp_path / "hidden"
    hidden.mkdir()
    chunks = features(load_audio(clip.audio).astype(np.float32) / 32768, nano.model)["x"]
    rows = np.full((len(chunks) * nano.model["chunk"]["rows"], 128), 0.25, np.float16)
    np.save(hidden / f"{clip.id}.encoder_out.npy", rows)
    found = made(nano, [clip], tmp_path / "set", hidden)
    assert all((sample["encoder_out"] == 0.25).all() for sample in found.samples("joiner"))
    np.save(hidden / f"{clip.id}.encoder_out.npy", rows[:-1])
    with pytest.raises(BadInput, match=r"shape .* but these graphs give"):
        made(nano, [clip], tmp_path / "other", hidden)


def test_a_state_that_cannot_go_on_is_said_with_clip_and_chunk(
    nano: Exported, speech: list[Clip], tmp_path: Path
) -> None:
    def change(call: int, outputs: dict[str, Any]) -> dict[str, Any]:
        if call == 3:
            outputs["new_cached_val_1"] = np.full_like(outputs["new_cached_val_1"], np.nan)
        return outputs

    with pytest.raises(BadInput, match=rf"clip '{speech[0].id}', chunk 3: new_cached_val_1 holds NaN"):
        calibrate(
            nano.graphs,
            tmp_path,
            speech[:1],  # the call is that clip's
            CalibrationOptions(samples=10),
            Through(nano.runner, change),
            tmp_path / "set",
        )


def test_nothing_of_what_is_not_kept_stays_on_disk(nano: Exported, speech: list[Clip], tmp_path: Path) -> None:
    made(nano, speech, tmp_path / "set", samples=10)
    left = {path.name for path in (tmp_path / "set").iterdir()}
    index = CalibrationSet.open(tmp_path / "set").index
    used = {ref.file for part in index.parts.values() for sample in part.samples for ref in sample.values()}
    assert left == used | {"calibration.json", *index.streams}
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(BadInput, match="no clip of the calibration set"):
        made(nano, [], tmp_path / "set")
