"""The calibration folder: what is written comes back whole, and what is damaged is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from nightjar.errors import BadInput
from nightjar.graphs.tensor_spec import TensorSpec
from nightjar.quantization.calibration_set import CalibrationSet, CalibrationWriter, RunningHistogram

PARTS = {
    "encoder": [TensorSpec(name="mel", shape=(1, 4, 6), dtype="float32")],
    "decoder": [
        TensorSpec(name="token", shape=(1, 1), dtype="int64"),
        TensorSpec(name="self_k_0", shape=(1, 8, 3), dtype="float32"),
        TensorSpec(name="cross_k_0", shape=(1, 5, 3), dtype="float32"),
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One clip with three decode steps, the KV cache and the cross-attention keys stored once."""
    rng = np.random.default_rng(0)
    writer = CalibrationWriter(tmp_path / "set", PARTS, seed=7)
    writer.add("encoder", {"mel": writer.store("encoder", "mel", "mel_000000.npy", rng.normal(size=(1, 4, 6)))})
    cache = writer.store("decoder", "self_k_0", "clip_000000.self_k_0.npy", rng.normal(size=(1, 2, 3)), rows=True)
    cross = writer.store("decoder", "cross_k_0", "clip_000000.cross_k_0.npy", rng.normal(size=(1, 5, 3)))
    for step in range(3):
        token = writer.store("decoder", "token", f"tokens_{step:06d}.npy", np.array([[step]]))
        rows = cache.model_copy(update={"rows": step})
        writer.add("decoder", {"cross_k_0": cross, "self_k_0": rows, "token": token})
    writer.close({"clips": 1}, ["few samples"])
    return tmp_path / "set"


def test_samples_come_back_in_graph_order_and_full_shape(folder: Path) -> None:
    found = CalibrationSet.open(folder)
    assert found.parts == ("encoder", "decoder")
    assert found.count("decoder") == 3
    cache = np.load(folder / "clip_000000.self_k_0.npy")
    for step, sample in enumerate(found.samples("decoder")):
        assert list(sample) == ["token", "self_k_0", "cross_k_0"]
        assert [v.shape for v in sample.values()] == [i.shape for i in found.inputs("decoder")]
        assert sample["token"] == [[step]]
        np.testing.assert_array_equal(sample["self_k_0"][:, :step], cache[:, :step])
        assert not sample["self_k_0"][:, step:].any()


def test_fewer_samples_are_the_first_and_others_evenly(folder: Path) -> None:
    found = CalibrationSet.open(folder)
    assert [int(sample["token"][0, 0]) for sample in found.samples("decoder", 2)] == [0, 1]
    assert [int(sample["token"][0, 0]) for sample in found.samples("decoder", 1)] == [0]
    assert len(list(found.samples("decoder", 100))) == 3


def test_index_has_seed_warnings_and_ranges(folder: Path) -> None:
    index = json.loads((folder / "calibration.json").read_text())
    assert index["seed"] == 7
    assert index["warnings"] == ["few samples"]
    assert index["coverage"]["clips"] == 1
    mel = np.load(folder / "mel_000000.npy")
    found = index["coverage"]["ranges"]["encoder"]["mel"]
    assert found["min"] == pytest.approx(mel.min(), rel=1e-5)
    assert found["max"] == pytest.approx(mel.max(), rel=1e-5)
    assert index["parts"]["decoder"]["samples"][1]["self_k_0"] == {"file": "clip_000000.self_k_0.npy", "rows": 1}
    assert str(folder) not in json.dumps(index)


def test_dataset_names_whole_files_and_writes_rows_out(folder: Path) -> None:
    listed = CalibrationSet.open(folder).write_dataset("decoder")
    assert listed == folder / "dataset" / "decoder" / "dataset.txt"
    lines = listed.read_text().splitlines()
    assert len(lines) == 3
    for line, sample in zip(lines, CalibrationSet.open(folder).samples("decoder"), strict=True):
        paths = [Path(p) for p in line.split(" ")]
        assert all(p.is_absolute() for p in paths)
        assert paths[0].parent == paths[2].parent == folder.resolve()
        for path, value in zip(paths, sample.values(), strict=True):
            np.testing.assert_array_equal(np.load(path), value)


def test_dataset_goes_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    assert CalibrationSet.open(folder).write_dataset("encoder", tmp_path / "x") == tmp_path / "x" / "dataset.txt"


def test_dataset_refuses_white_space_in_a_path(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="white space"):
        CalibrationSet.open(folder).write_dataset("decoder", tmp_path / "my set")


def test_store_refuses_what_does_not_fit(tmp_path: Path) -> None:
    writer = CalibrationWriter(tmp_path, PARTS)
    with pytest.raises(BadInput, match=r"shape \(1, 4, 5\)"):
        writer.store("encoder", "mel", "a.npy", np.zeros((1, 4, 5)))
    with pytest.raises(BadInput, match="no input 'hidden'"):
        writer.store("encoder", "hidden", "a.npy", np.zeros((1, 4, 6)))
    with pytest.raises(BadInput, match="NaN"):
        writer.store("encoder", "mel", "a.npy", np.full((1, 4, 6), np.nan))
    ref = writer.store("encoder", "mel", "a.npy", np.zeros((1, 4, 6)))
    with pytest.raises(BadInput, match="stored already"):
        writer.store("encoder", "mel", "a.npy", np.zeros((1, 4, 6)))
    with pytest.raises(BadInput, match=r"missing inputs \['cross_k_0', 'self_k_0'\]"):
        writer.add("decoder", {"token": ref})


def test_unfinished_or_damaged_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cut short"):
        CalibrationSet.open(tmp_path)
    with pytest.raises(BadInput, match="no samples for part 'cross'; it has encoder, decoder"):
        CalibrationSet.open(folder).inputs("cross")
    index = folder / "calibration.json"
    whole = index.read_text()
    index.write_text(whole[:-40])
    with pytest.raises(BadInput, match="malformed"):
        CalibrationSet.open(folder)
    index.write_text(whole.replace('"mel_000000.npy"', '"../mel_000000.npy"'))
    with pytest.raises(BadInput, match="plain file name"):
        CalibrationSet.open(folder)
    index.write_text(whole.replace('"rows": 2', '"rows": 3'))
    with pytest.raises(BadInput, match="3 rows wanted, 2 stored"):
        list(CalibrationSet.open(folder).samples("decoder"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "cannot read"),
        (lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "cannot read"),
        (lambda path: np.save(path, np.zeros((1, 6, 4), np.float32)), "shape"),
        (lambda path: np.save(path, np.zeros((1, 4, 6))), "dtype"),
    ],
)
def test_a_damaged_array_is_refused(folder: Path, damage, said: str) -> None:
    damage(folder / "mel_000000.npy")
    with pytest.raises(BadInput, match=said):
        list(CalibrationSet.open(folder).samples("encoder"))


def test_spread_is_close_to_numpy_and_does_not_depend_on_order() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(50, 300)).astype(np.float32) * scale for scale in (0.01, 1.0, 40.0)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(arrays)
        spread = RunningHistogram()
        for array in arrays:
            spread.add(array)
        found.append((spread.summary(), spread.percentile(1), spread.percentile(75)))
    assert found[0] == found[1] == found[2]
    every = np.concatenate([a.ravel() for a in arrays])
    assert (spread.low, spread.high) == (every.min(), every.max())
    for percent in (0.1, 1, 75, 99.9):
        assert spread.percentile(percent) == pytest.approx(np.percentile(every, percent), rel=0.01, abs=0.1)
