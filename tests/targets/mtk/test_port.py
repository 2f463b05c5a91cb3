"""A port through the doubles: every step of the adapter as the flow calls it; no figure here says anything."""

import json
from pathlib import Path

import pytest

from flows.port import port
from flows.start import run_flow
from nightjar.cli.console import Screen
from nightjar.request import PortRequest
from tests.flows.conftest import write_speech
from tests.targets.mtk.conftest import Doubles


@pytest.mark.slow
def test_it_goes_from_checkpoint_to_verdict_and_the_report_says_what_became_of_each_part(
    doubles: Doubles, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.inject(ncc={"cpu": "SOFTMAX"})
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("NIGHTJAR_REPORTS", str(tmp_path / "reports"))
    request = PortRequest(
        model="random",
        checkpoint=random_checkpoint,
        target="mtk",
        precision="int8",
        calibration_set=write_speech(tmp_path / "calibration", {"c1": "red", "c2": "blue"}, speaker="ada"),
        test_set=write_speech(tmp_path / "test", {"t1": "stop", "t2": "start"}, speaker="bob"),
        calibration_samples=2,
    )
    results, _ = run_flow(port, request, Screen())
    assert (results["target"], results["tier"]) == ("mtk", "vendor-simulator")
    assert results["verdict"] in ("PASS", "FAIL", "UNDECIDED")
    assert results["made_from"]["binary"]["sdk"]["mtk-converter"] == "8.13.0"
    assert results["made_from"]["binary"]["sdk"]["ncc-tflite"] == "8.2.19"
    folder = tmp_path / "store" / "build" / results["made_from"]["binary"]["key"]
    parts = json.loads((folder / "binary.json").read_text())["parts"]
    page = Path(results["report"]).read_text()
    for name, part in parts.items():
        assert (folder / part["file"]).suffix == ".dla"
        sizes = f"{part['tflite']['size_bytes'] / 1e6:.2f} MB of .tflite became {part['size_bytes'] / 1e6:.2f} MB of"
        assert f"{name}: {sizes}" in page
    assert "not on the NPU: 4 SOFTMAX" in page
