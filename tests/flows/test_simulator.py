"""A short port to the RK3588 in Rockchip's simulator; tests/flows/test_rknn.py has the long ones."""

import json
from pathlib import Path

from nightjar.errors import NightjarError
from nightjar.toolchains.environment import toolchain
from tests.conftest import need
from tests.flows.conftest import Cli, shipped_speech


def test_a_float_port_reaches_its_verdict_in_the_simulator(cli: Cli, tmp_path: Path) -> None:
    try:
        toolchain("rknn")
    except NightjarError as error:
        need("rknn", False, str(error))
    flags = [*shipped_speech(tmp_path / "speech", calibration=2, evaluation=4), "--window", "5", "--precision", "fp"]
    done = cli("port", "--target", "rknn", *flags, "--json", tmp_path / "r.json")
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["tier"] == "vendor-simulator"
    assert results["rtf"] is None
    assert results["clips"] == 5
    assert results["delta_wer"] == 0
    assert {gate["outcome"] for gate in results["gates"] if gate["name"] == "agreement"} == {"PASS"}
