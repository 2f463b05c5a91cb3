"""A port to the Hailo-8L's stand-in, as a user sees it, and to its doubles, as a flow sees them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.port import port
from flows.start import run_flow
from nightjar.cli.console import Screen
from nightjar.request import PortRequest
from nightjar.toolchains.environment import override_toolchain
from tasks.markdown import verdict_markdown
from tests.flows.conftest import ROOT, Cli, shipped_speech
from tests.targets.hailo.environment import make_environment

pytestmark = pytest.mark.slow

HAILO = ("port", "--target", "hailo")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    flags = shipped_speech(tmp_path_factory.mktemp("speech"), calibration=8, evaluation=5)
    return [*flags, "--calibration-samples", "8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hailo") / "artifacts"


def built(store: Path, results: dict[str, Any]) -> Path:
    return store / "build" / str(results["made_from"]["binary"]["key"])


def test_the_stand_in_is_heard_and_never_taken_for_the_npu(
    cli: Cli, few: list[str], store: Path, tmp_path: Path
) -> None:
    done = cli(*HAILO, "--board", "stand-in", *few, "--json", tmp_path / "r.json", store=store)
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert (results["target"], results["tier"]) == ("hailo.stand_in", "stand-in")
    word = f"stand-in ({results['verdict']})"
    *_, noted, last, _ = done.stdout.splitlines()
    assert last.startswith(word)
    assert "not a score of this NPU" in noted
    assert "binary (stand-in)" in done.stdout
    page = (ROOT / results["report"]).read_text()
    assert f'<p class="verdict soft">{word}</p>' in page
    assert f"<title>{word} · " in page
    assert "encoder: a window of 10 s is not known to fit on the chip" in page
    assert verdict_markdown(results).startswith(f"# {word} · ")
    assert results["rtf"] is None  # a stand-in's seconds say nothing

    binary = json.loads((built(store, results) / "binary.json").read_text())
    assert {name: part["runner"] for name, part in binary["parts"].items()} == {
        **{"encoder": "hailo.stand_in"},
        **{"cross": "onnx", "decoder": "onnx"},
    }
    assert set(binary["parts"]["encoder"]["schemes"]) == {"a8_w8", "a16_w16"}
    assert not [path.name for path in store.rglob("*") if path.suffix in (".hef", ".har")]


def test_the_ui_says_that_it_is_a_stand_in(server: str, cli: Cli, few: list[str], store: Path) -> None:
    done = cli(*HAILO, "--board", "stand-in", *few, store=store, PREFECT_API_URL=server)
    assert done.returncode in (0, 1), done.stderr
    wanted = {"artifacts": {"key": {"like_": "%-whisper-nano-hailo-int8"}}}
    found = {each["key"]: each for each in httpx.post(f"{server}/artifacts/latest/filter", json=wanted).json()}
    verdict = found["verdict-whisper-nano-hailo-int8"]
    assert verdict["description"].startswith("stand-in (")
    assert verdict["data"].startswith("# stand-in (")
    assert "not a score of this NPU" in verdict["data"]
    scores = json.loads(found["scores-whisper-nano-hailo-int8"]["data"])
    assert [row["tier"] for row in scores] == ["host", "host", "stand-in"]


def test_auto_searches_on_the_stand_in(cli: Cli, few: list[str], store: Path, tmp_path: Path) -> None:
    done = cli(
        *(*HAILO, "--board", "stand-in", *few, "--precision", "auto", "--json", tmp_path / "a.json"), store=store
    )
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["tier"] == "stand-in"
    assert any(point["int8_mac_share"] == results["search"]["taken"] for point in results["search"]["points"])
    encoder = json.loads((built(store, results) / "binary.json").read_text())["parts"]["encoder"]
    assert encoder["int8_mac_share"] == results["search"]["taken"]["encoder"]


def test_without_the_sdk_the_commands_are_named_that_would_give_it(cli: Cli, few: list[str], tmp_path: Path) -> None:
    done = cli(*HAILO, *few, NIGHTJAR_TOOLCHAINS=str(tmp_path / "none"))
    assert done.returncode == 3, done.stderr
    assert "nightjar toolchain install hailo --sdk FOLDER" in done.stderr
    assert "hailo_dataflow_compiler" in done.stderr
    assert "--board stand-in" in done.stderr


def test_the_lint_of_the_shipped_model_refuses_nothing_of_the_recipe(cli: Cli, store: Path, tmp_path: Path) -> None:
    done = cli("lint", "--target", "hailo", "--json", tmp_path / "l.json", store=store)
    assert done.returncode == 0, done.stderr
    assert "refuse encoder: Conv in first convolution (/conv1/Conv)" in done.stdout
    assert "the recipe of hailo: nothing refused" in done.stdout
    results = json.loads((tmp_path / "l.json").read_text())
    assert {finding["level"] for finding in results["recipe"]} == {"warn"}


def test_a_port_through_the_doubles_goes_from_checkpoint_to_verdict(
    few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of the adapter as the flow calls it; the figures are those of a double and say nothing."""
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "artifacts"))
    request = PortRequest(
        target="hailo",
        precision="int8",
        calibration_set=Path(few[1]),
        test_set=Path(few[3]),
        calibration_samples=8,
        limit=3,
    )
    with override_toolchain("hailo", make_environment(tmp_path / "doubles")):
        results, _ = run_flow(port, request, Screen())
    assert results["tier"] == "vendor-simulator"
    assert results["verdict"] in ("PASS", "FAIL", "UNDECIDED")
    assert results["made_from"]["binary"]["sdk"]["hailo-dataflow-compiler"] == "3.33.1"
    folder = built(tmp_path / "artifacts", results)
    assert (folder / "encoder.har").is_file()
