"""The first port, as a user sees it: one command, one verdict, nothing done twice."""

import json
import shutil
from pathlib import Path

import pytest

from nightjar.scoring.normalize import normalise
from tests.flows.conftest import ROOT, Cli, shipped_speech

SCHEMA = {
    *(
        "model",
        "target",
        "tier",
        "precision",
        "wer",
        "wer_float",
        "wer_stock",
        "delta_wer",
        "interval",
        "verdict",
        "clips",
    ),
    *("skipped", "size_bytes", "rtf", "int8_mac_share", "hypotheses", "stages"),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a part of the shipped speech, with a silent clip among the test clips."""
    return shipped_speech(tmp_path_factory.mktemp("speech"), calibration=12, evaluation=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("port") / "artifacts"


def test_a_port_prints_a_verdict_and_writes_its_figures(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    done = cli("port", *few, "--json", tmp_path / "results.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() >= SCHEMA
    assert results["verdict"] in done.stdout
    assert (done.returncode == 0) == (results["verdict"] == "PASS")
    assert results["clips"] == 17
    assert results["tier"] == "host"
    assert results["interval"][0] <= results["delta_wer"] <= results["interval"][1]
    assert abs(results["wer_float"] - results["wer_stock"]) <= 0.5
    assert results["int8_mac_share"]["encoder"] > 0.3
    assert all(stage["seconds"] > 0 for stage in results["stages"] if not stage["cached"])
    page = (ROOT / results["report"]).read_text()
    assert results["verdict"] in page
    assert len(page) < 1_000_000
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_silent_clip_is_scored_and_what_is_heard_in_it_counts(cli: Cli, few: list[str], store: Path) -> None:
    assert cli("port", *few, store=store).returncode in (0, 1)
    verdict = json.loads(next((store / "judge").glob("*/verdict.json")).read_text())
    silent = next(clip for clip in verdict["scores"]["binary"]["clips"] if clip["id"] == "silent")
    heard = len(normalise(silent["hypothesis"]).split())
    assert silent["counts"]["insertions"] == heard
    assert set(verdict["silence"]["binary_words"]) == {"probe-silence", "probe-noise", "probe-hum"}


def test_a_second_run_executes_nothing_and_says_so(cli: Cli, few: list[str], store: Path) -> None:
    cli("port", *few, store=store)
    again = cli("port", *few, store=store)
    assert "stages cached, none was executed" in again.stdout
    assert "0 of" in cli("port", *few, "--plan", store=store).stdout


def test_a_budget_judges_again_and_runs_nothing_else(cli: Cli, few: list[str], store: Path) -> None:
    cli("port", *few, store=store)
    plan = cli("port", *few, "--max-delta-wer", "7", "--plan", store=store).stdout
    would_run = [line.split()[0] for line in plan.splitlines() if "would run" in line and "stages" not in line]
    assert would_run == ["judge", "report"]
    assert "budgets.max_delta_wer 1.0 → 7.0" in plan


def test_float_precision_needs_no_calibration(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    done = cli("port", *few, "--precision", "fp", "--json", tmp_path / "fp.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "fp.json").read_text())
    assert results["delta_wer"] == 0
    assert not {"harvest", "calibrate"} & {stage["name"] for stage in results["stages"]}


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["window", "static"])
def test_other_decoder_protocols_port(cli: Cli, few: list[str], store: Path, tmp_path: Path, decoder: str) -> None:
    done = cli("port", *few, "--decoder", decoder, "--limit", "4", "--json", tmp_path / "r.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["recipe"]["decoder"] == decoder
    if decoder == "static":
        assert results["wer_float"] == results["wer_stock"]


def test_something_useful_is_said_before_prefect_is_imported(cli: Cli) -> None:
    said = cli("port", "--target", "tpu").stdout
    assert "whisper-nano" in said


@pytest.mark.slow
def test_compare_writes_a_json_per_clip_and_a_summary(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    audio = Path(few[3]).parent / "clips" / "evaluation"
    done = cli("compare", audio, "--out", tmp_path / "compared", store=store)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    assert summary["clips"] == summary["equal"] == 16
    one = json.loads(next(p for p in (tmp_path / "compared").glob("*.json") if p.name != "summary.json").read_text())
    assert one["by"].keys() == {"openai-whisper", "torchscript", "onnx"}
    for said in one["by"].values():
        assert said.keys() == {"text", "language", "tokens", "seconds"}


@pytest.mark.parametrize(("command", "said"), [("targets", "onnx"), ("models", "whisper-nano"), ("doctor", "python")])
def test_listings(cli: Cli, command: str, said: str) -> None:
    done = cli(command)
    assert done.returncode == 0, done.stderr + done.stdout
    assert said in done.stdout


@pytest.mark.slow
def test_host_embedding_changes_the_files_and_not_the_text(
    cli: Cli, few: list[str], store: Path, tmp_path: Path
) -> None:
    done = cli(
        "port",
        *few,
        "--precision",
        "fp",
        "--host-embedding",
        "--limit",
        "4",
        "--json",
        tmp_path / "r.json",
        store=store,
    )
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["recipe"]["host_embedding"] is True
    assert results["wer_float"] == results["wer_stock"]


@pytest.mark.slow
def test_nodes_can_be_kept_float(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    asked = ("port", *few, "--limit", "4")
    cli(*asked, "--json", tmp_path / "int8.json", store=store)
    done = cli(*asked, "--float-nodes", "encoder:*blocks.0*", "--json", tmp_path / "kept.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    share = {name: json.loads((tmp_path / f"{name}.json").read_text())["int8_mac_share"] for name in ("int8", "kept")}
    assert share["kept"]["encoder"] < share["int8"]["encoder"]
    assert share["kept"]["decoder"] == share["int8"]["decoder"]


@pytest.mark.slow
def test_a_report_repeats_itself_elsewhere(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    cli("port", *few, "--limit", "4", "--json", tmp_path / "r.json", store=store)
    report = tmp_path / "report.html"
    shutil.copyfile(ROOT / json.loads((tmp_path / "r.json").read_text())["report"], report)
    again = cli("reproduce", report, store=tmp_path / "empty")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "reproduced: the same scores and verdict" in again.stdout
    assert "--limit 4" in again.stdout


@pytest.mark.slow
def test_a_report_that_was_tampered_with_is_not_reproduced(
    cli: Cli, few: list[str], store: Path, tmp_path: Path
) -> None:
    cli("port", *few, "--limit", "4", "--json", tmp_path / "r.json", store=store)
    results = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps(results | {"wer_float": 1.5}))
    again = cli("reproduce", tmp_path / "r.json", store=store)
    assert again.returncode == 1
    assert "wer_float: 1.5 then" in again.stdout
    assert cli("reproduce", "README.md", store=store).returncode == 2
