"""The board's runner against a strict double of HailoRT, on .hef files that the other double wrote; and preflight."""

import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.device.health import facts
from nightjar.toolchains.environment import Toolchain
from targets import hailo
from targets.hailo import preflight
from targets.hailo.toolchain import simulate
from tests.targets.hailo.environment import inject

INT8 = hailo.Options(precision="int8", calibration_samples=2)


@pytest.fixture
def runner(inline: Toolchain) -> Iterator[types.ModuleType]:
    """targets/hailo/runner.py with the double for its runtime."""
    sys.modules.pop("targets.hailo.runner", None)
    module = importlib.import_module("targets.hailo.runner")
    yield module
    device = importlib.import_module("hailo_platform").VDevice
    assert device._held is None, "the chip was not given back"
    for name in ("targets.hailo.runner", "hailo_platform"):
        sys.modules.pop(name, None)


@pytest.fixture
def binary(inline: Toolchain, static: Path, tmp_path: Path) -> Path:
    """Both parts for the NPU."""
    options = INT8.model_copy(update={"npu": ("encoder", "decoder")})
    hailo.compile(static / "graphs", static / "calibration", options, tmp_path / "binary")
    return tmp_path / "binary"


def entries(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())["parts"]
    return found


def inputs(binary: Path, part: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {t["name"]: rng.normal(size=t["shape"]).astype(np.float32) for t in entries(binary)[part]["inputs"]}


def test_the_chip_gives_what_the_emulator_gives_and_stdout_stays_clean(
    runner: types.ModuleType, binary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    emulator = simulate.open_runner(binary, entries(binary))
    opened = runner.open_runner(binary, entries(binary))
    capfd.readouterr()
    for part in ("encoder", "decoder", "encoder"):  # in turns: they share the chip
        given = inputs(binary, part)
        first, *rest = given
        found = opened.run(part, {first: given[first]}, {name: given[name] for name in rest})
        wanted = emulator.run(part, given)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    kept = found["hidden"].copy()
    opened.run("encoder", {"mel": np.zeros_like(given["mel"])})
    np.testing.assert_array_equal(found["hidden"], kept, err_msg="results must not be HailoRT's own buffers")
    opened.close()
    emulator.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "[HailoRT] [info] running" in captured.err


def test_it_says_in_one_line_what_cannot_be(runner: types.ModuleType, binary: Path, environment: Path) -> None:
    opened = runner.open_runner(binary, entries(binary), {"timeout_ms": 50})
    given = inputs(binary, "decoder")
    inject(
        environment, run=[{"raise": "HailoRTTimeout", "say": "Received a timeout"}, {"raise": "HailoRTStatusException"}]
    )
    for part, tensors, said in (
        ("joiner", given, "no part 'joiner' here: have decoder, encoder"),
        ("decoder", {}, "decoder takes embedding, audio, not "),
        ("decoder", {**given, "audio": given["audio"][:, 1:]}, r"takes audio as \(1, 150, 32\), not \(1, 149, 32\)"),
        ("decoder", given, "no result for decoder: HailoRTTimeout: Received a timeout; the chip is busy, hot or hung"),
        ("decoder", given, "no result for decoder: HailoRTStatusException$"),
    ):
        with pytest.raises(RuntimeError, match=said):
            opened.run(part, tensors)
    opened.close()


def test_files_that_the_chip_does_not_take(
    runner: types.ModuleType, binary: Path, static: Path, environment: Path, tmp_path: Path
) -> None:
    parts = {"encoder": entries(binary)["encoder"]}
    other = INT8.model_copy(update={"hw_arch": "hailo8"})
    hailo.compile(static / "graphs", static / "calibration", other, tmp_path / "other")
    with pytest.raises(RuntimeError, match=r"HEFNotCompatibleWithDevice.*with --target-options hw_arch=hailo8l"):
        runner.open_runner(tmp_path / "other", parts)
    (binary / "encoder.hef").write_bytes(b"half")
    with pytest.raises(RuntimeError, match=r"HailoRTInvalidHEFException.*; the \.hef is damaged"):
        runner.open_runner(binary, parts)
    (binary / "encoder.hef").unlink()
    with pytest.raises(RuntimeError, match=r"no file .*encoder\.hef"):
        runner.open_runner(binary, parts)
    with pytest.raises(RuntimeError, match="encoder is in float, and the NPU computes with integers"):
        runner.open_runner(binary, {"encoder": {**parts["encoder"], "context": "native"}})
    inject(environment, open=[{"raise": "HailoRTException", "say": "error: 74 (HAILO_OUT_OF_PHYSICAL_DEVICES)"}])
    with pytest.raises(RuntimeError, match=r"no Hailo device can be opened: .*another process holds the chip"):
        runner.open_runner(binary, {})


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("outputs", {"layer": "net/conv99"}, r"has outputs nightjar_encoder/\w+ where encoder has net/conv99"),
        ("inputs", {"shape": [1, 80, 1, 100]}, r"has nightjar_encoder/input_layer1 as \(1, 300, 80\), not with 8000"),
    ],
)
def test_a_hef_of_another_part_is_found_out(
    runner: types.ModuleType, binary: Path, kind: str, changes: dict[str, Any], said: str
) -> None:
    entry = entries(binary)["encoder"]
    entry[kind] = [{**entry[kind][0], **changes}]
    with pytest.raises(RuntimeError, match=said):
        runner.open_runner(binary, {"encoder": entry})


GOOD = {"hailo chip": "HAILO8L", "hailort library": "4.23.0", "hailo driver": "4.23.0", "hailo firmware": "4.23.0"}
DFC = {"hailo-dataflow-compiler": "3.33.1"}


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({"hailo chip": "HAILO8"}, "warn", "slower than its own"),
        ({"hailo chip": "HAILO8R"}, "warn", "takes no .hef of hailo8l: pass --target-options hw_arch=hailo8r"),
        ({"hailo chip": "HAILO10H"}, "refuse", "need another line of the DFC"),
        ({"hailo chip": "absent"}, "warn", "which chip it has"),
        ({"hailort library": "absent"}, "warn", "which HailoRT it has"),
        (dict.fromkeys(("hailort library", "hailo driver", "hailo firmware"), "4.20.0"), "warn", "older than 4.23"),
        (dict.fromkeys(("hailort library", "hailo driver", "hailo firmware"), "5.2.0"), "refuse", "for Hailo-10H"),
        ({"hailo driver": "4.21.0"}, "refuse", "its driver is 4.21.0 and HailoRT 4.23.0"),
        ({"hailo firmware": "4.21.0"}, "warn", "its firmware is 4.21.0"),
        ({"hailo driver": "absent"}, "warn", "which driver it has"),
    ],
)
def test_a_board_that_does_not_fit_is_told_before_a_run(changes: dict[str, str], level: str, said: str) -> None:
    assert list(preflight.fit(DFC, GOOD)) == []
    found = list(preflight.fit(DFC, {**GOOD, **changes}))
    assert [finding.level for finding in found] == [level], found
    assert said in found[0].message


def test_a_board_is_asked_by_its_own_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "hailortcli"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "HailoRT-CLI version 4.23.0"; exit; fi\n'
        '[ "$1 $2" = "fw-control identify" ] || exit 3\n'
        "echo 'Executing on device: 0001:01:00.0'\n"
        "echo 'Firmware Version: 4.23.0 (release,app,extended context switch buffer)'\n"
        "echo 'Board Name: Hailo-8'\n"
        "echo 'Device Architecture: HAILO8L'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    source = Path(preflight.__file__).read_text()
    found = facts(["numpy"], source)["runtimes"]  # as a board runs it: the source, and nothing else of ours
    assert {name: found[name] for name in ("hailo chip", "hailort library", "hailo firmware")} == {
        "hailo chip": "HAILO8L",
        "hailort library": "4.23.0",
        "hailo firmware": "4.23.0",
    }
    monkeypatch.setenv("PATH", "/nowhere")
    assert set(preflight.versions().values()) == {"absent"}
    assert preflight.parsed("none") is None
