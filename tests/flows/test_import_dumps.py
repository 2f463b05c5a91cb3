"""Dumps of other tools: the same calibration as a harvest gives, and every wrong file named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nightjar.cli.main import main
from nightjar.errors import BadInput
from tasks.import_dumps import match_clips
from tests.flows.conftest import write_speech

CLIPS = ("dump-c", "dump-a", "dump-b")  # the manifest's order, which is not that of the ids
ROWS, WIDTH = 500, 32  # of random_checkpoint


@pytest.fixture(scope="module")
def store(shared_store: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTJAR_STORE", str(shared_store))
        yield shared_store


@pytest.fixture(scope="module")
def model(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    speech = write_speech(tmp_path_factory.mktemp("speech"), dict.fromkeys(CLIPS, "red"))
    return ["--model", "random", "--checkpoint", str(random_checkpoint), "--calibration-set", str(speech)]


@pytest.fixture(scope="module")
def harvested(store: Path, model: list[str]) -> Path:
    """The harvest of a transcription in int8."""
    spoken = Path(model[-1]).parent / "dump-a.wav"
    assert main(["transcribe", str(spoken), "--precision", "int8", *model]) == 0
    return next(store.glob("harvest/*/dump-a.hidden.npy")).parent


@pytest.fixture
def dumps(harvested: Path, tmp_path: Path) -> Path:
    """Float32 dumps of the harvest, numbered by line."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    for number, clip in enumerate(CLIPS):
        np.load(harvested / f"{clip}.hidden.npy").astype("<f4").tofile(folder / f"enc_{number:06d}.bin")
    (folder / "log.txt").write_text("what else lies there is left alone")
    return folder


def imported(dumps: Path, model: list[str], tmp_path: Path) -> dict[str, object]:
    written = tmp_path / "imported.json"
    assert main(["calibrate", "import-dumps", "--bin-dir", str(dumps), *model, "--json", str(written)]) == 0
    results: dict[str, object] = json.loads(written.read_text())
    return results


def refused(dumps: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["calibrate", "import-dumps", "--bin-dir", str(dumps), *model]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("nightjar: ")
    assert "\n" not in error
    return error


def test_dumps_of_a_harvest_give_its_calibration_set(
    store: Path, dumps: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.parent.name for path in store.glob("calibrate/*/calibration.json")}
    results = imported(dumps, model, tmp_path)
    assert Path(str(results["calibration"])).name in before  # the same content has the same key
    assert results["samples"] == {"encoder": 3, "cross": 3, "decoder": 99}
    said = capsys.readouterr().out
    assert str(results["calibration"]) in said
    assert "few calibration samples" in said
    lists = [Path(str(path)) for path in results["datasets"]]  # type: ignore[attr-defined]
    assert [path.parent.name for path in lists] == ["cross", "encoder"]
    assert all(Path(line).is_file() for path in lists for line in path.read_text().splitlines())


def test_names_by_id_give_the_same_as_by_number(
    store: Path, harvested: Path, dumps: Path, model: list[str], tmp_path: Path
) -> None:
    numbered = imported(dumps, model, tmp_path)
    for number, clip in enumerate(CLIPS):
        (dumps / f"enc_{number:06d}.bin").rename(dumps / f"enc_{clip}.bin")
    assert imported(dumps, model, tmp_path) == numbered
    made = {path.parent for path in store.glob("import_dumps/*/dump-a.hidden.npy")}
    for folder in made:
        for clip in CLIPS:
            name = f"{clip}.hidden.npy"
            assert (folder / name).read_bytes() == (harvested / name).read_bytes()


def test_the_order_of_the_manifest_counts(dumps: Path, model: list[str], tmp_path: Path) -> None:
    shutil.copytree(Path(model[-1]).parent, tmp_path / "turned")
    turned = tmp_path / "turned" / "speech.jsonl"
    turned.write_text("".join(reversed(turned.read_text().splitlines(keepends=True))))
    other = imported(dumps, [*model[:-1], str(turned)], tmp_path)
    assert other["calibration"] != imported(dumps, model, tmp_path)["calibration"]


def test_a_wrong_size_names_the_file_and_both_sizes(
    dumps: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with (dumps / "enc_000001.bin").open("ab") as file:
        file.write(b"1234")
    line = refused(dumps, model, capsys)
    assert "enc_000001.bin" in line
    assert f"expected {ROWS * WIDTH * 4} bytes, found {ROWS * WIDTH * 4 + 4}" in line
    assert "enc_000000.bin" not in line


def test_dumps_of_another_window_say_so(dumps: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for path in dumps.glob("*.bin"):
        path.write_bytes(path.read_bytes()[: 250 * WIDTH * 4])
    assert "250 rows are a --window of 5" in refused(dumps, model, capsys)


def test_missing_and_surplus_files_are_named(dumps: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (dumps / "enc_000002.bin").rename(dumps / "enc_000003.bin")
    assert "enc_000003.bin belongs to none of the 3 clips" in refused(dumps, model, capsys)
    (dumps / "enc_000003.bin").unlink()
    assert "enc_000002.bin is missing" in refused(dumps, model, capsys)
    shutil.rmtree(dumps)
    assert str(dumps) in refused(dumps, model, capsys)
    dumps.mkdir()
    assert "enc_*.bin" in refused(dumps, model, capsys)


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "not a finite number"), (-np.inf, "not a finite number"), (7e4, "beyond float16")]
)
def test_values_that_no_harvest_has_are_refused(
    dumps: Path, model: list[str], capsys: pytest.CaptureFixture[str], value: float, said: str
) -> None:
    array = np.fromfile(dumps / "enc_000002.bin", "<f4").reshape(ROWS, WIDTH)
    array[7, 3] = value
    array.tofile(dumps / "enc_000002.bin")
    line = refused(dumps, model, capsys)
    assert said in line
    assert "enc_000002.bin" in line
    assert "row 7, column 3" in line


def test_names_in_two_ways_are_refused() -> None:
    with pytest.raises(BadInput, match="two ways"):
        match_clips(["enc_000000.bin", "enc_a.bin"], ["a", "b"], ["a", "b"])


def test_numbers_need_an_order() -> None:
    with pytest.raises(BadInput, match="no order"):
        match_clips(["enc_000000.bin"], ["a"], [])


def test_ids_that_are_numbers_must_be_in_their_order() -> None:
    names = ["enc_000000.bin", "enc_000001.bin"]
    ids = ["000000", "000001"]
    assert match_clips(names, ids, ids) == dict(zip(names, ids, strict=True))
    with pytest.raises(BadInput, match="may be line 0"):
        match_clips(names, ids, ids[::-1])
