"""The Hailo target against strict doubles of its SDK, some in an environment of its own: calls, files, failures."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nightjar.errors import BadInput, BadOptions, NightjarError, ToolchainFailed, ToolchainMissing
from nightjar.graphs.fusion import quantizable_groups
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import make_options, session_of
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import Toolchain, probe, toolchain
from targets import hailo
from targets.onnx.runner import open_runner
from tests.targets.hailo.environment import inject

FP, INT8 = hailo.Options(), hailo.Options(precision="int8", calibration_samples=2)
NONE = {"raise": "BackendAllocatorException", "say": "Compilation failed: No valid partition found"}


def described(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())
    return found


def emulated(sdk: Toolchain, binary: Path, folder: Path, scratch: Path) -> dict[str, tuple[float, bool]]:
    """Run a sample of every part on the NPU in the emulator: SNR in dB, and whether stdout stayed clean."""
    samples = CalibrationSet.open(folder / "calibration")
    exact = open_runner(folder / "graphs", json.loads((folder / "graphs" / "model.json").read_text())["parts"])
    found = {}
    for part, entry in described(binary)["parts"].items():
        if entry["runner"] != "hailo":
            continue
        scratch.mkdir(exist_ok=True)
        sample = next(iter(samples.samples(part)))
        np.savez(scratch / f"{part}.in.npz", **sample)
        job = {"binary": str(binary), "part": part, "in": f"{part}.in.npz", "out": f"{part}.out.npz"}
        printed = sdk.call("tests.targets.hailo.emulated", job, scratch, 120)["printed"]
        wanted, got = exact.run(part, sample), dict(np.load(scratch / f"{part}.out.npz"))
        assert {name: array.shape for name, array in wanted.items()} == {n: array.shape for n, array in got.items()}
        signal = sum(float((array.astype(float) ** 2).sum()) for array in wanted.values())
        noise = sum(float(((array - got[name]).astype(float) ** 2).sum()) for name, array in wanted.items())
        found[part] = (10 * np.log10(signal / max(noise, 1e-20)), printed == "")
    return found


def test_without_the_sdk_it_says_what_to_get_and_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path))
    with pytest.raises(ToolchainMissing, match=r"hailo_dataflow_compiler-3\.33.*toolchain install hailo --sdk FOLDER"):
        toolchain("hailo")
    with pytest.raises(ToolchainMissing):
        board_of(plugin("targets", "hailo"), None)


def test_the_doubles_are_no_toolchain_that_the_command_line_would_take(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(environment))
    with pytest.raises(ToolchainMissing, match="is pinned"):
        toolchain("hailo")


def test_the_probe_translates_and_emulates(sdk: Toolchain) -> None:
    assert probe(sdk)["dfc"] == "3.33.1"
    assert sdk.versions()["hailo-dataflow-compiler"] == "3.33.1"


def test_float_is_what_the_parser_read(sdk: Toolchain, cached: Path, tmp_path: Path) -> None:
    hailo.compile(cached / "graphs", None, FP, tmp_path / "fp")
    binary = described(tmp_path / "fp")
    assert (binary["target"], binary["precision"], binary["host_position_add"]) == ("hailo", "fp", True)
    assert {name: part["runner"] for name, part in binary["parts"].items()} == {
        "encoder": "hailo",
        "cross": "onnx",
        "decoder": "onnx",
    }
    encoder = binary["parts"]["encoder"]
    assert (encoder["file"], encoder["context"], encoder["int8_mac_share"]) == ("encoder.har", "native", 0.0)
    assert encoder["window"] == {"seconds": 3.0, "known_to_fit": False, "why": "no window is known to fit"}
    assert not [*(tmp_path / "fp").glob("*.hef")]
    (snr, clean) = emulated(sdk, tmp_path / "fp", cached, tmp_path / "s")["encoder"]
    assert snr > 100
    assert clean


def test_int8_is_compiled_with_residual_sums_in_16_bits(sdk: Toolchain, cached: Path, tmp_path: Path) -> None:
    hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "int8")
    encoder = described(tmp_path / "int8")["parts"]["encoder"]
    assert (encoder["file"], encoder["context"], encoder["hw_arch"]) == ("encoder.hef", "quantized", "hailo8l")
    assert encoder["size_bytes"] == (tmp_path / "int8" / "encoder.hef").stat().st_size
    assert encoder["int8_mac_share"] == 1.0
    assert encoder["calibration_samples"] == 2
    assert encoder["optimization_level"] == {"asked": 2, "used": 2, "why": ""}
    layers = json.loads((tmp_path / "int8" / "encoder.layers.json").read_text())
    wide = {layer["name"] for layer in layers if layer["precision"] == "a16_w16"}
    assert wide == {layer["name"] for layer in layers if layer["kind"] == "ew_add"}
    assert encoder["nodes_total"] - encoder["nodes_int8"] == len(wide) == 5
    script = (tmp_path / "int8" / "encoder.alls").read_text()
    assert "checker_cfg, policy=disabled" in script
    assert "calibset_size=2)" in script
    (snr, clean) = emulated(sdk, tmp_path / "int8", cached, tmp_path / "s")["encoder"]
    assert 10 < snr < 60
    assert clean


def test_a_plan_says_which_layers_are_wide_and_attention_is_not(
    inline: Toolchain, cached: Path, tmp_path: Path
) -> None:

    groups = quantizable_groups(onnx.load(cached / "graphs" / "encoder.onnx"))
    kept = [group.tensor for group in groups if group.kind in ("attention", "norm", "gelu")]
    (tmp_path / "plan.json").write_text(json.dumps({"float": {"encoder": kept, "decoder": ["logits"]}}))
    options = hailo.Options(precision="auto", calibration_samples=2)
    hailo.compile(cached / "graphs", cached / "calibration", options, tmp_path / "b", plan=tmp_path / "plan.json")
    layers = json.loads((tmp_path / "b" / "encoder.layers.json").read_text())
    wide = [layer["kind"] for layer in layers if layer["precision"] == "a16_w16"]
    # A GELU is its convolution's; the norm that makes the output makes the output layer wide.
    assert set(wide) == {"conv", "layer_normalization", "normalization", "output_layer"}
    assert 0 < described(tmp_path / "b")["parts"]["encoder"]["int8_mac_share"] < 1
    options = options.model_copy(update={"attention_16bit": True})
    with pytest.raises(BadOptions, match="put fewer layers in 16 bits"):
        hailo.compile(cached / "graphs", cached / "calibration", options, tmp_path / "c", plan=tmp_path / "plan.json")


def test_both_parts_on_the_npu(inline: Toolchain, static: Path, tmp_path: Path) -> None:
    options = INT8.model_copy(update={"npu": ("encoder", "decoder"), "float_nodes": ("decoder:/heads.1/*",)})
    hailo.compile(static / "graphs", static / "calibration", options, tmp_path / "b")
    parts = described(tmp_path / "b")["parts"]
    assert {part["runner"] for part in parts.values()} == {"hailo"}
    slices = [tensor["name"] for tensor in parts["decoder"]["outputs"]]
    assert slices == [f"logits_{i}" for i in range(4)]
    assert [tensor["at"] for tensor in parts["decoder"]["outputs"]] == [0, 1, 2, 3]
    assert 0 < parts["decoder"]["int8_mac_share"] < 1
    found = emulated(inline, tmp_path / "b", static, tmp_path / "s")
    assert all(snr > 8 for snr, _ in found.values()), found


def test_what_only_moves_at_the_end_is_the_hosts(inline: Toolchain, cached: Path, tmp_path: Path) -> None:
    options = FP.model_copy(update={"npu": ("encoder", "cross")})
    hailo.compile(cached / "graphs", None, options, tmp_path / "b")
    outputs = described(tmp_path / "b")["parts"]["cross"]["outputs"]
    assert all([kind for kind, _ in tensor["moves"]] == ["reshape", "transpose"] for tensor in outputs)
    assert emulated(inline, tmp_path / "b", cached, tmp_path / "s")["cross"][0] > 100


@pytest.mark.parametrize(
    ("folder", "changes", "said"),
    [
        ("cached", {"npu": ("encoder", "decoder")}, "keep a KV cache: pass --decoder static"),
        ("static", {"npu": ("encoder", "cross")}, "names cross, and these graphs have encoder, decoder"),
        ("cached", {"precision": "int8"}, "int8 needs calibration data"),
        ("cached", {"precision": "auto"}, "needs the plan of a precision search"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    inline: Toolchain, request: pytest.FixtureRequest, tmp_path: Path, folder: str, changes: dict[str, Any], said: str
) -> None:
    graphs = request.getfixturevalue(folder) / "graphs"
    with pytest.raises(BadOptions, match=said):
        hailo.compile(graphs, None, FP.model_copy(update=changes), tmp_path / "b")


def test_names_that_fit_nothing_are_refused(inline: Toolchain, cached: Path, tmp_path: Path) -> None:
    def compiled(**changes: Any) -> None:
        hailo.compile(cached / "graphs", cached / "calibration", INT8.model_copy(update=changes), tmp_path / "b")

    with pytest.raises(BadOptions, match="fits no layer that could be int8; encoder has /Add_2_output_0, "):
        compiled(float_nodes=("encoder:/nothing*",))
    with pytest.raises(BadOptions, match="not PART:GLOB with a PART of encoder, cross, decoder"):
        compiled(float_nodes=("joiner:*",))
    with pytest.raises(ValueError, match="is not PART:GLOB"):
        hailo.Options(float_nodes=("encoder",))
    auto = INT8.model_copy(update={"precision": "auto"})
    for content, kind, said in (
        ("[1]", BadInput, "is no plan"),
        ('{"float": {"encoder": ["x"]}}', BadOptions, "names tensor 'x', which no group"),
    ):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(kind, match=said):
            hailo.compile(cached / "graphs", cached / "calibration", auto, tmp_path / "b", plan=tmp_path / "plan.json")


def test_a_compile_that_failed_goes_on_from_the_optimized_har(
    inline: Toolchain, environment: Path, cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "targets.hailo")

    def compiled() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out", work=tmp_path / "work")

    inject(environment, compile=[{"raise": "SomethingNew", "say": "the chip is blue"}])
    with pytest.raises(ToolchainFailed, match=r"could not compile the encoder \(SomethingNew: the chip is blue\)"):
        compiled()
    assert (tmp_path / "work" / "encoder" / "optimized.har").is_file()
    inject(environment, translate=[{"raise": "Again"}], optimize=[{"raise": "Again"}])
    compiled()  # neither is called again
    assert [record.getMessage() for record in caplog.records] == [
        "encoder: translate was done by an earlier run",
        "encoder: optimize was done by an earlier run",
    ]
    # Half a file, or one of other options, is none.
    (tmp_path / "work" / "encoder" / "optimized.har").write_bytes(b"half")
    inject(environment, translate=[{"raise": "Again"}], optimize=[{"raise": "Anew"}])
    with pytest.raises(ToolchainFailed, match=r"could not optimize the encoder \(Anew"):
        compiled()


def test_what_does_not_fit_is_tried_with_less_of_the_chip(
    inline: Toolchain, environment: Path, cached: Path, tmp_path: Path
) -> None:
    inject(environment, compile=[NONE, None])
    hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")
    assert described(tmp_path / "out")["parts"]["encoder"]["max_utilization"] == 0.8
    inject(environment, compile=[NONE, NONE, NONE])
    with pytest.raises(BadOptions, match=r"No valid partition found.*a shorter --window: no size of this"):
        hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")


def test_dead_layers_are_left_where_their_removal_fails(
    inline: Toolchain, environment: Path, cached: Path, tmp_path: Path
) -> None:
    dead = {"raise": "KeyError", "say": "in dead_layers_removal: conv7"}
    inject(environment, optimize=[dead, None])
    hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")
    assert "dead_layers_removal, policy=disabled" in (tmp_path / "out" / "encoder.alls").read_text()
    inject(environment, optimize=[dead, dead])
    with pytest.raises(BadOptions, match="is disabled already"):
        hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")


def test_the_level_really_used_is_recorded_and_said(
    inline: Toolchain, environment: Path, cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    why = "there's less data than the recommended amount (1024), and there's no available GPU"
    skipped = "the accuracy won't be optimized and compression won't be used"
    line = f"[warning] Reducing optimization level to 0 ({skipped}) because {why}"
    inject(environment, optimize=[{"print": ["[info] Using default optimization level of 2", line]}])
    hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")
    encoder = described(tmp_path / "out")["parts"]["encoder"]
    assert encoder["optimization_level"] == {"asked": 2, "used": 0, "why": why}
    assert encoder["notes"][1] == f"the DFC optimized at level 0, not 2: {why}"
    assert f"encoder: the DFC optimized at level 0, not 2: {why}" in caplog.text


FAILURES: list[tuple[str, dict[str, str], type[NightjarError], str]] = [
    (
        "translate",
        {"raise": "ParsingWithRecommendationException", "say": "Parsing failed"},
        BadOptions,
        "nightjar lint",
    ),
    ("translate", {"raise": "UnsupportedShuffleLayerError", "say": "x"}, BadOptions, "nightjar lint"),
    ("optimize", {"raise": "AccelerasUnsupportedError", "say": "precision_change14"}, BadOptions, "attention_16bit=no"),
    ("optimize", {"raise": "BadInputsShape", "say": "3-D"}, BadOptions, "targets/hailo/build.py"),
    ("optimize", {"raise": "NegativeSlopeExponentNonFixable", "say": "conv3"}, BadOptions, "finetune_epochs=4"),
    (
        "optimize",
        {"raise": "ResourceExhaustedError", "say": "OOM when allocating"},
        ToolchainFailed,
        "calibration_batch=2",
    ),
    ("compile", {"raise": "Odd", "say": "first\nsecond"}, ToolchainFailed, "first second.*read the log"),
]


@pytest.mark.parametrize(("step", "fault", "kind", "said"), FAILURES, ids=[f[1]["raise"] for f in FAILURES])
def test_each_way_to_fail_has_its_words(
    inline: Toolchain,
    environment: Path,
    cached: Path,
    tmp_path: Path,
    step: str,
    fault: dict[str, str],
    kind: type[NightjarError],
    said: str,
) -> None:
    inject(environment, **{step: [fault]})
    with pytest.raises(kind, match=said) as caught:
        hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "log in" in str(caught.value)
    assert (environment / "logs" / f"hailo.{step}.txt").is_file() or "compile.txt" in str(caught.value)


def test_a_success_without_a_file_is_none(inline: Toolchain, environment: Path, cached: Path, tmp_path: Path) -> None:
    inject(environment, save_translated=[{"skip": True}])
    with pytest.raises(ToolchainFailed, match=r"reports success and wrote no translated\.har"):
        hailo.compile(cached / "graphs", None, FP, tmp_path / "out")
    inject(environment, compile=[{"result": ""}])
    with pytest.raises(ToolchainFailed, match="reports success and gave no bytes"):
        hailo.compile(cached / "graphs", cached / "calibration", INT8, tmp_path / "out")


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        (["input_layer shape"], r"mel is \(1, 300, 80\) with its channels last, and it reads it as"),
        (["outputs"], "its 0 outputs do not include hidden"),
    ],
)
def test_a_parser_that_reads_another_graph_is_found_out(
    inline: Toolchain, environment: Path, cached: Path, tmp_path: Path, dropped: list[str], said: str
) -> None:
    inject(environment, translate=[{"drop": dropped}])
    with pytest.raises(ToolchainFailed, match=said):
        hailo.compile(cached / "graphs", None, FP, tmp_path / "out")


def test_a_network_that_does_not_name_its_ends_is_read_by_their_order(
    inline: Toolchain, environment: Path, static: Path, tmp_path: Path
) -> None:
    inject(environment, translate=[{"drop": ["conv", "order", "input_layer"]}])
    hailo.compile(static / "graphs", None, FP, tmp_path / "out")
    assert emulated(inline, tmp_path / "out", static, tmp_path / "s")["encoder"][0] > 100


def test_memory_is_limited(sdk: Toolchain, environment: Path, cached: Path, tmp_path: Path) -> None:
    inject(environment, translate=[{"sleep": 30}])
    options = FP.model_copy(update={"memory_gib": 0.01})
    with pytest.raises(ToolchainFailed, match=r"used 0\.\d GiB of memory where 0\.0"):
        hailo.compile(cached / "graphs", None, options, tmp_path / "out")


def test_a_session_takes_the_runners_of_both_targets(sdk: Toolchain) -> None:
    target, decode = plugin("targets", "hailo"), plugin("models", "whisper", "decode")
    board = board_of(target, "simulator")
    assert [each.module for each in session_of(decode, target, board)][1:] == [
        "targets.hailo.toolchain.simulate",
        "targets.onnx.runner",
    ]
    assert board.facts.runtimes["hailo-dataflow-compiler"] == "3.33.1"
    options = make_options(target, "int8", (), ("npu=encoder,decoder", "max_utilization=0.5", "noise_analysis=checker"))
    assert options.model_dump()["npu"] == ("encoder", "decoder")
    assert options.model_dump()["max_utilization"] == (0.5,)
    assert os.environ.get("HAILO_DOUBLE") is None
