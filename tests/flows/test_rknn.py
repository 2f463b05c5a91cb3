"""A port to the RK3588 in Rockchip's simulator, as a user sees it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.whisper.decode import features, prompt_tokens
from nightjar.errors import NightjarError
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech
from nightjar.toolchains.environment import toolchain
from tests.conftest import need
from tests.flows.conftest import ROOT, Cli, shipped_speech

pytestmark = pytest.mark.slow

RKNN = ("port", "--target", "rknn")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shipped_speech(tmp_path_factory.mktemp("speech"), calibration=16, evaluation=8)


@pytest.fixture(scope="module")
def few(speech: list[str]) -> list[str]:
    try:
        toolchain("rknn")
    except NightjarError as error:
        need("rknn", False, str(error))
    return [*speech, "--calibration-samples", "16", "--window", "5"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rknn") / "artifacts"


def ran(results: dict[str, Any]) -> set[str]:
    return {stage["name"] for stage in results["stages"] if not stage["cached"]}


def test_auto_searches_builds_and_judges_in_the_simulator(
    cli: Cli, few: list[str], store: Path, tmp_path: Path
) -> None:
    done = cli(*RKNN, *few, "--precision", "auto", "--json", tmp_path / "r.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["tier"] == "vendor-simulator"
    assert results["rtf"] is None
    assert results["made_from"]["binary"]["sdk"]["rknn-toolkit2"] == "2.5.0"
    assert {"rank", "rewrite", "quantize", "frontier"} <= {stage["name"] for stage in results["stages"]}
    points = results["search"]["points"]
    assert any(point["int8_mac_share"] == results["search"]["taken"] for point in points)
    assert min(point["steps"] for point in points) > 50
    assert results["int8_mac_share"]["encoder"] > 0.5
    assert results["int8_mac_share"]["decoder"] > 0.5  # 1 % of the arithmetic, and every weight is read at each step
    page = (ROOT / results["report"]).read_text()
    assert "Precision search" in page
    assert "taken" in page
    assert len(page) < 1_000_000

    again = cli(*RKNN, *few, "--precision", "auto", store=store)
    assert "none was executed" in again.stdout

    clip = load_speech(ROOT / "data" / "whisper-nano" / "evaluation.jsonl")[20]  # not among the few
    heard = cli("transcribe", clip.audio, *RKNN[1:], *few[:2], *few[4:], "--precision", "auto", store=store)
    assert heard.returncode == 0, heard.stderr
    words = clip.text.lower().split()
    assert sum(word in heard.stdout.lower() for word in words) > len(words) / 2, heard.stdout

    # Another budget goes on from what is measured.
    wider = cli(
        *(*RKNN, *few, "--precision", "auto", "--search-delta-wer", "40", "--json", tmp_path / "w.json"), store=store
    )
    assert wider.returncode in (0, 1), wider.stderr
    second = json.loads((tmp_path / "w.json").read_text())
    assert not {"harvest", "calibrate", "rank", "rewrite", "quantize", "evaluate rungs float"} & ran(second)
    assert second["search"]["taken"]["total"] >= results["search"]["taken"]["total"]


def test_the_zoos_shapes_and_names_come_out_for_its_users(
    cli: Cli, few: list[str], random_checkpoint: Path, store: Path, tmp_path: Path
) -> None:
    # whisper-nano says nothing to a prompt given six times, and noise has a lot to say.
    flags = ("--decoder", "window", "--window", "4", "--positional", "last", "--precision", "fp")
    model = ("--model", "noise", "--checkpoint", random_checkpoint)
    done = cli(*RKNN, *few, *flags, *model, "--json", tmp_path / "r.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    binary = store / "build" / results["made_from"]["binary"]["key"]
    tables = {part: json.loads((binary / f"{part}.sim.json").read_text())["inputs"] for part in ("encoder", "decoder")}
    found = {part: {name: attribute["shape"] for name, attribute in t["attrs"].items()} for part, t in tables.items()}
    dims = json.loads((binary / "model.json").read_text())["dims"]
    d, vocabulary = dims["n_audio_state"], dims["n_vocab"]
    assert found["encoder"] == {"x": [1, 80, 400], "out": [1, 200, d]}
    assert found["decoder"] == {"tokens": [1, 12], "audio": [1, 200, d], "out": [1, 12, vocabulary]}

    # The zoo's own loop, in the same simulator, hears what ours hears.
    model = json.loads((binary / "model.json").read_text())
    heard = store / "evaluate" / results["made_from"]["hypotheses"]["key"] / "hypotheses.jsonl"
    lines = [json.loads(line) for line in heard.read_text().splitlines()][:5]
    clips = {clip.id: clip for clip in load_speech(Path(few[3]))}
    job = {"do": "zoo", "binary": str(binary), "prompt": prompt_tokens(model), "most": model["max_tokens"]}
    job |= {"eot": model["tokens"]["eot"], "timestamp_begin": model["tokens"]["timestamp_begin"], "mels": []}
    for line in lines:
        wave = load_audio(clips[line["id"]].audio).astype(np.float32) / 32768
        np.save(tmp_path / f"{line['id']}.npy", features(wave, model)["mel"])
        job["mels"].append(str(tmp_path / f"{line['id']}.npy"))
    said = toolchain("rknn").call("tests.targets.rknn.simulated", job, tmp_path / "call", 300)
    assert said["tokens"] == [line["tokens"] for line in lines]
    assert sum(map(len, said["tokens"])) > 10


def test_attribute_says_whose_a_loss_is(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    done = cli(
        *("attribute", "--target", "rknn", *few, "--precisions", "fp", "int8", "--limit", "4"),
        *("--json", tmp_path / "a.json"),
        store=store,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "a.json").read_text())
    assert len(results["cells"]) == 9
    cells = {(cell["encoder"], cell["decoder"]): cell for cell in results["cells"]}
    assert cells["float", "float"]["kl"] == 0
    assert cells["fp", "fp"]["snr_db"] > cells["int8", "int8"]["snr_db"]
    assert cells["int8", "float"]["kl"] != cells["float", "int8"]["kl"]
    assert set(results["owners"]) == {"fp", "int8"}
    assert results["owners"]["fp"].startswith("neither part")
    assert results["owners"]["fp"] in done.stdout.replace("\n", " ")


def test_what_the_zoos_demo_printed_is_scored(cli: Cli, speech: list[str], store: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in Path(speech[3]).read_text().splitlines()]
    printed = tmp_path / "printed"
    printed.mkdir()
    for number, line in enumerate(lines[:6]):
        heard = "" if number == 3 else line["text"]  # one clip is not understood
        text = f"Whisper output: {heard}\n\nReal Time Factor (RTF): 0.500 / 2.500 = 0.200\n"
        (printed / f"{line['id']}.txt").write_text(text)
    asked = ("evaluate", *sorted(printed.glob("*.txt")), "--target", "rknn", *speech[2:])
    done = cli(*asked, "--json", tmp_path / "r.json", store=store)
    assert done.returncode == 1, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    words = [len(line["text"].split()) for line in lines[:6]]
    assert results["wer"] == pytest.approx(100 * words[3] / sum(words), abs=0.01)
    assert (results["clips"], results["tier"], results["hypotheses"]["empty"]) == (6, "device", 1)
    assert results["rtf"]["total"]["p50"] == pytest.approx(0.2)
    (printed / "nobody.txt").write_text("Whisper output: hi\n")
    wrong = cli("evaluate", *sorted(printed.glob("*.txt")), "--target", "rknn", *speech[2:], store=store)
    assert wrong.returncode == 2
    assert "belongs to no clip of the test set" in wrong.stderr


def test_the_device_itself_is_asked_for_where_it_is_not(cli: Cli, few: list[str]) -> None:
    done = cli(*RKNN, *few, "--board", "local")
    assert done.returncode == 3
    assert "rknn-toolkit-lite2" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_toolkit_the_command_that_installs_it_is_named(cli: Cli, tmp_path: Path) -> None:
    done = cli(*RKNN, NIGHTJAR_TOOLCHAINS=str(tmp_path / "none"))
    assert done.returncode == 3
    assert "nightjar toolchain install rknn" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
