"""Datasets: the same bytes whoever harvests and whatever is killed; what was altered is named and made anew."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nightjar.cli.main import main
from nightjar.dataset.reader import open_dataset
from nightjar.errors import BadManifest, BadOptions, StoreBroken
from nightjar.request import HarvestRequest
from nightjar.sessions.bulk_harvest import harvest_speech
from tests.served import ROOT, Server, boards, ran, with_runner


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def asked(binary: Path, speech: Path, out: Path, **more: Any) -> HarvestRequest:
    return HarvestRequest(**{"binary": binary, "speech": speech, "board": "local", "out": out, "shard_mib": 1, **more})


@pytest.fixture
def copied(local_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(local_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def test_it_is_read_clip_by_clip_through_memory_maps(small_binary: Path, noises: Path, local_dataset: Path) -> None:
    dataset = open_dataset(local_dataset)
    assert dataset.ids == [f"c{number:03d}" for number in range(150)]
    assert len(dataset) == 150
    assert [path.name for path in sorted(local_dataset.glob("*.npy"))] == [
        f"shard-{number:05d}.hidden.npy" for number in range(3)
    ]
    seen = []
    for sample in dataset:
        hidden = sample.tensors["hidden"]
        assert isinstance(hidden, np.memmap)
        assert not hidden.flags.writeable
        assert hidden.dtype == np.float16
        assert hidden.shape == (250, 32)
        assert sample.audio_s == 0.3
        seen.append(hidden.tobytes())
    assert len(set(seen)) == 150, "two clips have the same tensor"
    assert dataset[-1].id == "c149"
    assert [sample.id for sample in dataset[64:67]] == ["c064", "c065", "c066"]
    assert dataset[66].tensors["hidden"].tobytes() == seen[66]
    with pytest.raises(IndexError):
        dataset[150]


def test_a_host_killed_in_the_middle_of_a_shard_goes_on(
    small_binary: Path, noises: Path, local_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(tmp_path / "boards.toml"))
    served = with_runner(small_binary, tmp_path, before="time.sleep(0.01)")
    out = tmp_path / "out"
    flags = {"--binary": served, "--speech": noises, "--board": "svc", "--out": out, "--shard-mib": 1}
    words = ["harvest", *(str(word) for pair in flags.items() for word in pair)]
    runs = []
    with Server(served) as server:
        boards(tmp_path, server.port)
        for after in (30, 90):
            host = subprocess.Popen(
                [sys.executable, "-m", "nightjar.cli.main", *words], cwd=ROOT, stdout=subprocess.DEVNULL
            )
            while len(ran(served)) < after:
                assert host.poll() is None
                time.sleep(0.01)
            host.send_signal(signal.SIGKILL)
            host.wait()
            runs.append(kept(out))
            with pytest.raises(StoreBroken, match="is not finished: run the same"):
                open_dataset(out)
            # and in the middle of a line too
            journal = next(iter(out.glob("*.jsonl")))
            journal.write_bytes(journal.read_bytes() + b'{"id": "c1')
        time.sleep(0.5)
        before = len(ran(served))
        assert main(words) == 0
        made = len(ran(served)) - before
    assert 0 < len(runs[0]) < 65 <= len(runs[1]) < 150
    assert runs[0] <= runs[1]
    assert made == 150 - len(runs[1]), "a clip that was kept was run again"
    dataset, local = open_dataset(out), open_dataset(local_dataset)
    assert dataset.ids == local.ids
    for one, other in zip(dataset, local, strict=True):
        assert one.tensors["hidden"].tobytes() == other.tensors["hidden"].tobytes()


def kept(out: Path) -> set[str]:
    """Return the clips that records and whole lines of journals have."""
    found = set()
    for path in out.glob("shard-*.json*"):
        text = path.read_text()
        whole = json.loads(text)["clips"] if path.suffix == ".json" else map(json.loads, text.splitlines()[1:])
        found |= {entry["id"] for entry in whole}
    return found


def test_a_flipped_byte_is_named_and_its_clip_alone_is_made_anew(
    small_binary: Path, noises: Path, local_dataset: Path, copied: Path
) -> None:
    shard = copied / "shard-00001.hidden.npy"
    data = bytearray(shard.read_bytes())
    data[128 + 7 * 16000 + 4321] ^= 1  # of the eighth clip of the second shard
    shard.write_bytes(data)
    with pytest.raises(StoreBroken, match=r"shard-00001\.hidden\.npy: the tensor of clip c072 was altered") as named:
        open_dataset(copied)
    assert "\n" not in str(named.value)
    assert len(open_dataset(copied, verify=False)) == 150
    harvested = harvest_speech(asked(small_binary, noises, copied))
    assert harvested.new_clips == 1
    assert content(copied) == content(local_dataset)


def damage(folder: Path, name: str, how: str) -> None:
    path = folder / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-5000], "header": b"\x93NUMPZ" + data[6:], "other": data[:-40] + b"9" * 40}[how])


@pytest.mark.parametrize(
    ("name", "how", "said", "anew"),
    [
        ("shard-00000.hidden.npy", "cut", "was truncated", 1),
        ("shard-00000.hidden.npy", "gone", "cannot be read", 65),
        ("shard-00002.hidden.npy", "header", "or its header altered", 0),
        ("shard-00001.json", "other", "is missing or was altered", 65),
        ("shard-00001.json", "gone", "is missing or was altered", 65),
        ("dataset.json", "other", r"dataset\.json cannot be read \(it was altered\)", 0),
        ("dataset.json", "cut", r"dataset\.json cannot be read", 0),
    ],
)
def test_whatever_is_damaged_is_named_and_made_anew(
    name: str, how: str, said: str, anew: int, small_binary: Path, noises: Path, local_dataset: Path, copied: Path
) -> None:
    damage(copied, name, how)
    for verify in (True, False):
        with pytest.raises(StoreBroken, match=said):
            open_dataset(copied, verify=verify)
    assert harvest_speech(asked(small_binary, noises, copied)).new_clips == anew
    assert content(copied) == content(local_dataset)


def test_a_kill_between_a_shards_last_clip_and_its_record_costs_nothing(
    small_binary: Path, noises: Path, local_dataset: Path, copied: Path
) -> None:
    record = copied / "shard-00001.json"
    lines = [json.dumps(entry) + "\n" for entry in json.loads(record.read_text())["clips"]]
    whose = json.loads(record.read_text())["dataset"] + "\n"
    (copied / "shard-00001.jsonl").write_text(whose + "".join(lines))
    record.unlink()
    assert harvest_speech(asked(small_binary, noises, copied)).new_clips == 0
    assert content(copied) == content(local_dataset)


def test_shards_of_another_dataset_do_not_count_when_the_index_is_gone(
    small_binary: Path, noises: Path, copied: Path, tmp_path: Path
) -> None:
    other = with_runner(small_binary, tmp_path / "other")
    (copied / "dataset.json").write_text("{")
    with Server(other) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTJAR_BOARDS", str(boards(tmp_path, server.port)))
        assert harvest_speech(asked(other, noises, copied, board="svc")).new_clips == 150


def test_a_finished_dataset_is_left_as_it_is(small_binary: Path, noises: Path, copied: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copied.glob("shard-*")}
    assert harvest_speech(asked(small_binary, noises, copied)).new_clips == 0
    assert {path.name: path.stat().st_mtime_ns for path in copied.glob("shard-*")} == before
    assert len(open_dataset(copied)) == 150


def test_a_folder_of_something_else_is_refused(small_binary: Path, noises: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOptions, match="of another clips, speech: give another --out"):
        harvest_speech(asked(small_binary, noises, copied, limit=20))
    other = with_runner(small_binary, tmp_path / "other")
    with pytest.raises(BadOptions, match="of another binary"):
        harvest_speech(asked(other, noises, copied))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadOptions, match=r"has thesis\.tex"):
        harvest_speech(asked(small_binary, noises, tmp_path / "mine"))
    with pytest.raises(BadOptions, match="is not a binary"):
        harvest_speech(asked(noises, noises, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_limit_draws_clips_and_a_session_folder_is_not_left(small_binary: Path, noises: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    harvest_speech(asked(small_binary, noises, out, limit=20))
    ids = open_dataset(out).ids
    assert len(ids) == 20
    assert ids == sorted(ids)
    assert ids != [f"c{number:03d}" for number in range(20)]
    assert not (out / ".session").exists()


def test_clips_beyond_the_window_are_listed(small_binary: Path, noises: Path, tmp_path: Path) -> None:
    import soundfile

    speech = tmp_path / "speech"
    speech.mkdir()
    shutil.copy(noises / "c000.wav", speech)
    soundfile.write(speech / "long.wav", np.ones(16000 * 6, np.int16), 16000)
    harvested = harvest_speech(asked(small_binary, speech, tmp_path / "out"))
    assert harvested.dataset.skipped == ("long",)
    (speech / "c000.wav").unlink()
    with pytest.raises(BadOptions, match="no clip of at most 5 s"):
        harvest_speech(asked(small_binary, speech, tmp_path / "out"))
    (speech / "long.wav").unlink()
    with pytest.raises(BadManifest):
        harvest_speech(asked(small_binary, speech, tmp_path / "out"))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    small_binary: Path, noises: Path, local_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.pwrite, []

    def full(fd: int, data: Any, at: int) -> int:
        written.append(at)
        if len(written) > 80:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreBroken, match="free some space"):
            harvest_speech(asked(small_binary, noises, tmp_path / "out"))
    harvested = harvest_speech(asked(small_binary, noises, tmp_path / "out"))
    assert 65 < harvested.new_clips < 150
    assert content(tmp_path / "out") == content(local_dataset)


def test_dumps_are_numbered_by_the_lists_lines_and_hold_what_the_dataset_has(
    small_binary: Path, noises: Path, tmp_path: Path
) -> None:
    listed = ["c007", "long", "c003", "c120"]  # not the order of ids
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 6, np.int16), 16000)
    for name in listed:
        if name != "long":
            shutil.copy(noises / f"{name}.wav", tmp_path)
    lines = [{"audio_filepath": f"{name}.wav", "id": name} for name in listed]
    manifest = tmp_path / "speech.jsonl"
    manifest.write_text("".join(json.dumps({**line, "text": "x", "speaker": "s"}) + "\n" for line in lines))
    out, dumps = tmp_path / "dataset", tmp_path / "dumps"
    words = ["harvest", "--binary", small_binary, "--speech", manifest, "--board", "local", "--out", out]
    assert main([*map(str, words), "--dumps", str(dumps)]) == 0
    dataset = {sample.id: sample.tensors["hidden"] for sample in open_dataset(out)}
    assert sorted(path.name for path in dumps.iterdir()) == ["enc_000000.bin", "enc_000002.bin", "enc_000003.bin"]
    for number, name in enumerate(listed):
        if name != "long":
            dumped = np.fromfile(dumps / f"enc_{number:06d}.bin", "<f4").reshape(250, 32)
            assert np.array_equal(dumped, dataset[name].astype(np.float32))
    (dumps / "enc_000002.bin").write_bytes(b"cut")
    assert main([*map(str, words), "--dumps", str(dumps)]) == 0
    assert np.fromfile(dumps / "enc_000002.bin", "<f4").size == 250 * 32
