"""What runs inside the SDK's environment, line by line: other versions, odd outputs, bad files."""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.toolchains.environment import Toolchain
from targets import hailo
from targets.hailo.toolchain import compile as inside
from targets.hailo.toolchain import probe, sdk, simulate
from tests.targets.hailo.environment import inject


@pytest.fixture
def binary(inline: Toolchain, cached: Path, tmp_path: Path) -> Path:
    """The encoder in float, and the rest on the CPU."""
    hailo.compile(cached / "graphs", None, hailo.Options(), tmp_path / "binary")
    return tmp_path / "binary"


def entries(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())["parts"]
    return {"encoder": found["encoder"]}


MEL = {"mel": np.zeros((1, 80, 1, 300), np.float32)}


def test_the_emulator_says_in_one_line_what_cannot_be(binary: Path, environment: Path) -> None:
    runner = simulate.open_runner(binary, entries(binary))
    assert runner.run("encoder", {}, MEL)["hidden"].shape == (1, 150, 32)
    inject(environment, infer=[{"raise": "InvalidArgumentError", "say": "bad\nlines"}, {"result": [[1, 150, 32]] * 2}])
    for inputs, part, said in (
        (MEL, "joiner", "no part 'joiner' here: have encoder"),
        ({}, "encoder", "takes mel, not "),
        ({"mel": MEL["mel"][..., :7]}, "encoder", r"takes mel as \(1, 80, 1, 300\), not \(1, 80, 1, 7\)"),
        (MEL, "encoder", "cannot run encoder: InvalidArgumentError: bad$"),
        (MEL, "encoder", "gave 2 outputs for encoder, not 1"),
    ):
        with pytest.raises(RuntimeError, match=said):
            runner.run(part, inputs)
    inject(environment, infer=[{"result": [[1, 7]]}])
    with pytest.raises(RuntimeError, match=r"gave encoder in another shape: \(1, 7\) where the graph has"):
        runner.run("encoder", MEL)
    runner.close()
    with pytest.raises(RuntimeError, match="no part 'encoder'"):
        runner.run("encoder", MEL)


def test_a_har_that_is_absent_or_damaged_is_named(binary: Path, environment: Path) -> None:
    parts = entries(binary)
    inject(environment, load=[{"raise": "HailoArchiveError", "say": ""}])
    with pytest.raises(RuntimeError, match=r"cannot load .*encoder\.har: HailoArchiveError$"):
        simulate.open_runner(binary, parts)
    inject(environment, load=[{"raise": "ImportError", "say": "libcudart.so"}])
    with pytest.raises(ImportError):
        simulate.open_runner(binary, parts)
    (binary / "encoder.har").unlink()
    with pytest.raises(RuntimeError, match=r"no file .*encoder\.har for part 'encoder'"):
        simulate.open_runner(binary, parts)


def test_a_float_network_runs_in_no_quantized_context(binary: Path) -> None:
    parts = {"encoder": {**entries(binary)["encoder"], "context": "quantized"}}
    with pytest.raises(RuntimeError, match="InvalidStateException: the model is hailo_model"):
        simulate.open_runner(binary, parts)


def test_arguments_that_this_version_has_not_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    def older(model: str, net_name: str) -> None: ...

    def newer(model: str, **more: Any) -> None: ...

    assert inside.supported_arguments(older, {"net_name": "n", "net_input_format": {}}) == {"net_name": "n"}
    assert "this DFC has no net_input_format: left out" in capsys.readouterr().err
    assert inside.supported_arguments(newer, {"net_input_format": 1}) == {"net_input_format": 1}
    assert capsys.readouterr().err == ""


def test_a_network_is_read_as_older_versions_give_it() -> None:
    """`get_hn` in place of `get_hn_dict`, JSON in place of a dict, names without the network's."""
    network = {
        "name": "net",
        "layers": {
            "input_layer1": {"type": "input_layer", "output_shapes": [[-1, 1, 4, 8]], "original_names": ["x"]},
            "net/conv1": {"type": "conv", "input": ["input_layer1"], "output_shapes": [[-1, 1, 4, 2]]},
            "net/output_layer1": {"type": "output_layer", "input": ["conv1"], "output_shapes": [[-1, 1, 4, 2]]},
        },
    }
    runner = types.SimpleNamespace(get_hn=lambda: json.dumps(network))
    layers, outputs = sdk.layers(runner)
    assert [layer["name"] for layer in layers] == ["net/input_layer1", "net/conv1", "net/output_layer1"]
    assert layers[1]["inputs"] == ["net/input_layer1"]
    assert outputs == ["net/conv1"]
    network["net_params"] = {"output_layers_order": ["elsewhere"]}
    assert sdk.layers(types.SimpleNamespace(get_hn_dict=lambda: network))[1] == ["net/conv1"]


def test_input_formats_are_given_where_the_version_knows_them(inline: Toolchain, monkeypatch: Any) -> None:
    dims = importlib.import_module("hailo_sdk_client.exposed_definitions").Dims
    rows, four = [dims.BATCH, dims.WIDTH, dims.CHANNELS], [dims.BATCH, dims.CHANNELS, dims.HEIGHT, dims.WIDTH]
    shapes = {"audio": [1, 5, 8], "mask": [1, 1, 1, 9], "pair": [5, 8]}
    assert inside.input_format(shapes) == {"audio": rows, "mask": four, "pair": rows[1:]}
    assert inside.input_format({"mel": [1, 80, 1, 300]}) == {}
    monkeypatch.setitem(sys.modules, "hailo_sdk_client.exposed_definitions", types.ModuleType("older"))
    assert inside.input_format(shapes) == {}


def test_a_broken_import_is_no_refusal(inline: Toolchain, environment: Path, tmp_path: Path) -> None:
    inject(environment, load=[{"raise": "ImportError"}, {"raise": "MemoryError"}])
    job = {"kind": "compile", "source": "x", "script": ""}
    for kind in (ImportError, MemoryError):
        with pytest.raises(kind):
            inside.main(job)


def test_the_probe_finds_an_emulator_that_is_off(
    inline: Toolchain, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert probe.main({})["error"] < 1e-5
    inject(environment, infer=[{"result": [[1, 4, 4, 16]]}])
    with pytest.raises(RuntimeError, match=r"the emulator is 100\.0% off"):
        probe.main({})


def test_nothing_is_quantized_with_samples_of_another_layout(
    inline: Toolchain, cached: Path, environment: Path, tmp_path: Path
) -> None:
    """The double is strict: what the host lays out channels last it takes, the graph's own layout it refuses."""
    hailo.compile(cached / "graphs", None, hailo.Options(), tmp_path / "b", work=tmp_path / "work")
    np.save(tmp_path / "mel.npy", np.zeros((2, 80, 1, 300), np.float32))
    job = {
        "kind": "optimize",
        "source": str(tmp_path / "work" / "encoder" / "translated.har"),
        "script": "model_optimization_config(calibration, batch_size=8, calibset_size=2)\n",
        "data": {"nightjar_encoder/input_layer1": str(tmp_path / "mel.npy")},
        "har": str(tmp_path / "o.har"),
    }
    refused = inside.main(job)["refused"]
    assert refused["kind"] == "BadInputsShape"
    np.save(tmp_path / "mel.npy", np.zeros((2, 1, 300, 80), np.float32))
    assert "refused" not in inside.main(job)
    refused = inside.main({**job, "script": "quantise(everything)\n"})["refused"]
    assert refused == {"kind": "AllocatorScriptParserException", "message": "Invalid command quantise(everything)"}
