"""MediaTek's adapter against strict doubles of its SDK: each kind of build, each way in which the SDK fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.whisper.export import export
from nightjar.errors import BadInput, BadOptions, Broken, ToolchainFailed, ToolchainMissing
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_session import open_session
from nightjar.plugins.recipe import Recipe
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.toolchains.environment import override_toolchain, toolchain
from nightjar.toolchains.sdk_calls import supports
from targets import mtk as target
from targets.mtk.ncc import arguments, read_plan
from targets.mtk.toolchain import compile as inside
from tests.targets.mtk.conftest import Doubles

pytestmark = pytest.mark.slow

FP = target.Options()


def parts_of(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())["parts"]
    return found


def only(cached: Path, folder: Path, part: str = "decoder") -> Path:
    """Copy the graphs with one part in model.json, so that a failure is reached in seconds."""
    folder.mkdir()
    for path in (cached / "graphs").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "model.json").unlink()
    model = json.loads((cached / "graphs" / "model.json").read_text())
    model["parts"] = {part: model["parts"][part]}
    (folder / "model.json").write_text(json.dumps(model))
    return folder


@pytest.fixture(scope="module")
def fp(made: Doubles, cached: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float build of all parts."""
    out = tmp_path_factory.mktemp("fp")
    made.inject()
    with override_toolchain("mtk", made.folder):
        target.compile(cached / "graphs", None, FP, out)
    return out


def test_a_float_build_has_what_the_board_and_the_simulator_need(fp: Path) -> None:
    assert {path.name for path in fp.glob("*.dla")} == {"encoder.dla", "cross.dla", "decoder.dla"}
    for name, part in parts_of(fp).items():
        assert part["runner"] == "mtk"
        assert part["size_bytes"] == (fp / f"{name}.dla").stat().st_size
        assert part["tflite"]["dla_ratio"] == pytest.approx(part["size_bytes"] / part["tflite"]["size_bytes"], abs=1e-4)
        assert part["toolkit"] == "mtk_converter 8.13.0, ncc-tflite 8.2.19"
        assert part["off_npu"] == {}
        assert [note.partition(", ")[0] for note in part["notes"]] == [
            f"{part['tflite']['size_bytes'] / 1e6:.2f} MB of .tflite became {part['size_bytes'] / 1e6:.2f} MB of .dla"
        ]
        assert part["command"][1:4] == ["--arch=mdla5.3,edma3.6", "--l1-size-kb=256", "--num-mdla=1"]
        assert {"--relax-fp32", "--opt-accuracy", "--opt-footprint"} <= set(part["command"])
        assert part["skipped"] == []
    ops = parts_of(fp)["decoder"]["ops"]
    assert ops["MTKEXT_LAYER_NORMALIZATION"] == 7
    assert ops["MTKEXT_GELU"] == 2
    assert "GATHER" not in ops, "tokens are looked up on the CPU"
    assert (fp / "token_embedding.npy").is_file()


def test_the_simulator_gives_what_the_float_graphs_give(
    doubles: Doubles, cached: Path, fp: Path, tmp_path: Path
) -> None:
    for part in ("encoder", "cross", "decoder"):
        sample = next(CalibrationSet.open(cached / "calibration").samples(part))
        np.savez(tmp_path / f"{part}.npz", **sample)
        job = {"binary": str(fp), "part": part, "sample": str(tmp_path / f"{part}.npz")}
        found = toolchain("mtk").call("tests.targets.mtk.simulated", job, tmp_path / part, 120)
        outputs = np.load(tmp_path / part / "out.npz")
        wanted = open_session(onnx.load(cached / "graphs" / f"{part}.onnx"))
        for name, array in zip([o.name for o in wanted.get_outputs()], wanted.run(None, sample), strict=True):
            np.testing.assert_allclose(outputs[name], array, atol=1e-3)
    assert found["said"] == {
        "part": "no part 'joiner' here: have decoder",
        "input": "decoder takes embedding, mask, self_k_0, self_v_0, self_k_1, self_v_1, "
        "cross_k_0, cross_v_0, cross_k_1, cross_v_1, not ",
        "shape": "decoder takes mask as (1, 1, 1, 65), not (1, 1, 65)",
        "damaged": "TFLiteExecutor cannot load damaged.tflite: damaged.tflite cannot be parsed",
        "file": "no file x.tflite for part 'decoder'",
        "crash": "TFLiteExecutor cannot run decoder: it broke",
        "nothing": "TFLiteExecutor gave no result for decoder: see its messages above",
    }


def test_w8a8_and_w8a16_are_what_they_are_called(doubles: Doubles, cached: Path, tmp_path: Path) -> None:
    for precision, share in (("int8", "int8_mac_share"), ("w8a16", "w8a16_mac_share")):
        options = target.Options(precision=precision, samples=2)
        target.compile(
            only(cached, tmp_path / f"g-{precision}", "cross"), cached / "calibration", options, tmp_path / precision
        )
        part = parts_of(tmp_path / precision)["cross"]
        assert part[share] == 1.0
        name = "sym8W_asym8A" if precision == "int8" else "sym8W_sym16A"
        assert part["attributes"]["precision_proportion"] == {name: 1.0}
        assert part["attributes"]["calibration_data_gen"] == "a generator"
        assert part["tflite"]["size_bytes"] < 1e6


def test_attention_with_a_mask_keeps_sixteen_bits_by_the_precision_file(
    doubles: Doubles, cached: Path, tmp_path: Path
) -> None:
    options = target.Options(precision="int8", samples=2)
    target.compile(only(cached, tmp_path / "graphs"), cached / "calibration", options, tmp_path / "out")
    part = parts_of(tmp_path / "out")["decoder"]
    assert 0.9 < part["int8_mac_share"] < 1
    assert part["w8a16_mac_share"] == pytest.approx(1 - part["int8_mac_share"], abs=1e-3)
    assert part["attributes"]["precision_proportion"] is None, "the file is read, not written"


def test_a_plan_keeps_groups_in_sixteen_bits_and_whole_parts_float(
    doubles: Doubles, cached: Path, tmp_path: Path
) -> None:
    groups = fuse(onnx.load(cached / "graphs" / "encoder.onnx"))
    kept = [group.tensor for group in groups if group.kind in ("linear", "conv")]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"float": {"encoder": kept}, "whole": ["cross", "decoder"], "rewrites": {}}))
    auto = target.Options(precision="auto", samples=2)
    target.compile(cached / "graphs", cached / "calibration", auto, tmp_path / "out", plan=plan)
    found = parts_of(tmp_path / "out")
    assert found["cross"]["int8_mac_share"] == found["decoder"]["int8_mac_share"] == 0
    macs = {group.tensor: group.macs for group in groups}
    share = sum(macs[name] for name in kept) / sum(macs.values())
    assert found["encoder"]["w8a16_mac_share"] >= share - 1e-3, "what reads 16 bits has them too"
    assert found["encoder"]["w8a16_mac_share"] + found["encoder"]["int8_mac_share"] == pytest.approx(1, abs=1e-3)
    assert found["encoder"]["int8_mac_share"] > 0.1


def test_float_nodes_and_plans_are_held_against_the_graph(doubles: Doubles, cached: Path, tmp_path: Path) -> None:
    graphs, calibration = cached / "graphs", cached / "calibration"
    cases: list[tuple[type[Exception], str, dict[str, Any], dict[str, Any]]] = [
        (BadOptions, "needs the plan of a precision search", {"precision": "auto"}, {}),
        (
            BadOptions,
            "is not PART:GLOB with a PART of encoder",
            {"precision": "int8", "float_nodes": ("joiner:*",)},
            {},
        ),
        (BadOptions, "fits no layer that could be int8", {"precision": "int8", "float_nodes": ("encoder:/no/*",)}, {}),
        (BadInput, "is no plan", {"precision": "auto"}, {"plan": {"rewrites": {}}}),
        (BadOptions, "the plan names part 'joiner'", {"precision": "auto"}, {"plan": {"float": {"joiner": []}}}),
        (
            BadInput,
            "no group of part 'encoder' computes x",
            {"precision": "auto"},
            {"plan": {"float": {"encoder": ["x"]}}},
        ),
    ]
    for kind, said, options, more in cases:
        plan = None
        if "plan" in more:
            plan = tmp_path / "plan.json"
            plan.write_text(json.dumps(more["plan"]))
        with pytest.raises(kind, match=said):
            target.compile(graphs, calibration, target.Options(samples=1, **options), tmp_path / "out", plan=plan)
    with pytest.raises(BadOptions, match="int8 needs calibration data"):
        target.compile(graphs, None, target.Options(precision="int8"), tmp_path / "out")


def test_torchscript_of_this_machine_is_refused(doubles: Doubles, random_checkpoint: Path, tmp_path: Path) -> None:
    export(random_checkpoint, Recipe(graph_format="torchscript"), tmp_path / "graphs", clamp=True)
    with pytest.raises(BadOptions, match="traces TorchScript itself"):
        target.compile(tmp_path / "graphs", None, FP, tmp_path / "out")


@pytest.mark.parametrize(
    ("inject", "kind", "said"),
    [
        ({"convert": "RuntimeError: unsupported aten::foo"}, ToolchainFailed, "unsupported aten::foo"),
        ({"empty": True}, ToolchainFailed, "reports success and wrote no decoder.tflite"),
        ({"no_mtkext": True}, Broken, "without one MTKEXT_ operator"),
        ({"without": ["quantize"]}, ToolchainFailed, "cannot be told what to quantize"),
    ],
)
def test_what_the_converter_does_wrong_is_said(
    doubles: Doubles, cached: Path, tmp_path: Path, inject: dict[str, Any], kind: type[Exception], said: str
) -> None:
    doubles.inject(converter=inject)
    with pytest.raises(kind, match=said) as caught:
        target.compile(only(cached, tmp_path / "graphs"), None, FP, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_attributes_of_another_version_are_left_out_and_reported(
    doubles: Doubles, cached: Path, tmp_path: Path
) -> None:
    doubles.inject(converter={"without": ["prepend_input_quantize_ops", "use_per_output_channel_quantization"]})
    options = target.Options(precision="int8", samples=1)
    target.compile(only(cached, tmp_path / "graphs", "cross"), cached / "calibration", options, tmp_path / "out")
    skipped = parts_of(tmp_path / "out")["cross"]["skipped"]
    assert skipped == ["prepend_input_quantize_ops", "use_per_output_channel_quantization"]


@pytest.mark.parametrize(
    ("inject", "said"),
    [
        ({"without": ["precision_config_file"]}, "has no precision_config_file, so no layer can keep 16 bits"),
        ({"foreign_names": True}, "precision file names no tensor of"),
        ({"config": "odd"}, "wrote a precision file of another form"),
    ],
)
def test_a_precision_file_that_cannot_be_used_is_no_silent_w8a8(
    doubles: Doubles, cached: Path, tmp_path: Path, inject: dict[str, Any], said: str
) -> None:
    doubles.inject(converter=inject)
    options = target.Options(precision="int8", samples=1)
    with pytest.raises(Broken, match=said):
        target.compile(only(cached, tmp_path / "graphs"), cached / "calibration", options, tmp_path / "out")


@pytest.mark.parametrize(
    ("inject", "kind", "said"),
    [
        ({"status": 1, "says": "ERROR: GATHER is not supported"}, ToolchainFailed, "GATHER is not supported"),
        ({"status": 0}, ToolchainFailed, "reports success and wrote nothing"),
        ({"empty": True}, ToolchainFailed, "reports success and wrote nothing"),
        ({"silent": True}, Broken, "printed no readable execution plan"),
        ({"edpa": "always"}, Broken, "needs an EDPA, which mt8371 lacks"),
    ],
)
def test_what_ncc_does_wrong_is_said_and_leaves_no_dla(
    doubles: Doubles, cached: Path, tmp_path: Path, inject: dict[str, Any], kind: type[Exception], said: str
) -> None:
    doubles.inject(ncc=inject)
    with pytest.raises(kind, match=said) as caught:
        target.compile(only(cached, tmp_path / "graphs", "cross"), None, FP, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "binary.json").exists()
    if kind is ToolchainFailed:
        assert not list((tmp_path / "out").glob("*.dla"))


def test_a_bridge_that_needs_an_edpa_is_compiled_again_without_it(
    doubles: Doubles, cached: Path, tmp_path: Path
) -> None:
    doubles.inject(ncc={"edpa": "bridge"})
    graphs = only(cached, tmp_path / "graphs", "cross")
    target.compile(graphs, None, FP, tmp_path / "out")
    part = parts_of(tmp_path / "out")["cross"]
    assert part["bridge"] == "disallowed"
    assert {"--arch=mdla5.3", "--suppress-output", "--disallow-bridge"} <= set(part["command"])
    assert not any("EDPA" in step["target"] for step in json.loads((tmp_path / "out" / part["plan"]).read_text()))
    with pytest.raises(Broken, match="needs an EDPA"):
        target.compile(graphs, None, target.Options(bridge="allow"), tmp_path / "allowed")
    doubles.inject()
    target.compile(graphs, None, target.Options(bridge="disallow"), tmp_path / "never")
    assert parts_of(tmp_path / "never")["cross"]["bridge"] == "disallowed"


def test_what_is_not_on_the_npu_is_in_the_audit(doubles: Doubles, cached: Path, tmp_path: Path) -> None:
    doubles.inject(ncc={"cpu": "SOFTMAX"})
    target.compile(only(cached, tmp_path / "graphs"), None, FP, tmp_path / "out")
    assert parts_of(tmp_path / "out")["decoder"]["off_npu"] == {"SOFTMAX": 4}
    assert "not on the NPU: 4 SOFTMAX" in parts_of(tmp_path / "out")["decoder"]["notes"]


def test_an_execution_plan_is_read_in_more_than_one_form() -> None:
    said = "noise\n[0] CONV_2D  (MDLA 5.3)\nTarget: EDMA_3_6  Op: TRANSPOSE\n  MTKEXT_GELU -> MDLA_5_3\nSOFTMAX: CPU\n"
    assert read_plan(said) == [
        {"op": "CONV_2D", "target": "MDLA_5_3"},
        {"op": "TRANSPOSE", "target": "EDMA_3_6"},
        {"op": "MTKEXT_GELU", "target": "MDLA_5_3"},
        {"op": "SOFTMAX", "target": "CPU"},
    ]


def test_a_newer_compiler_is_told_the_soc_by_name() -> None:
    assert arguments("mt8371", "9.0.3", disallowed=False)[0] == "--platform-config=mt8371"
    assert "--arch=mdla5.3,edma3.6" in arguments("mt8371", "8.2.19", disallowed=False)


def test_a_compiler_that_is_gone_is_missing(doubles: Doubles, cached: Path, tmp_path: Path) -> None:
    program = doubles.sdk / "bin" / "ncc-tflite"
    program.rename(program.with_name("gone"))
    try:
        with pytest.raises(ToolchainMissing, match="ncc-tflite of the toolchain of mtk is no longer at"):
            target.compile(only(cached, tmp_path / "graphs", "cross"), None, FP, tmp_path / "out")
    finally:
        program.with_name("gone").rename(program)


def test_converters_of_other_signatures_are_called_as_they_want(tmp_path: Path) -> None:
    class Bytes:
        def convert_to_tflite(self) -> bytes:
            return b"TFL3"

    class Opener:
        @staticmethod
        def from_script_module_file(path: str, input_shapes: list[list[int]]) -> tuple[str, list[list[int]]]:
            return path, input_shapes

    inside.convert(Bytes(), tmp_path / "x.tflite")
    assert (tmp_path / "x.tflite").read_bytes() == b"TFL3"

    class Sdk:
        PyTorchConverter = Opener

    import torch

    assert inside.open_converter(Sdk, Path("x.pt"), (torch.zeros(1, 2),)) == ("x.pt", [[1, 2]])
    with pytest.raises(RuntimeError, match="there is no calibration sample"):
        inside.calibration_generator(tmp_path / "none")

    class Compiled:
        __signature__ = "none that Python knows"

        def __call__(self) -> None: ...

    assert supports(Compiled(), "anything")


def test_a_converter_that_wrote_no_precision_file_is_a_failure(doubles: Doubles, cached: Path, tmp_path: Path) -> None:
    doubles.inject(converter={"config": "none"})
    options = target.Options(precision="int8", samples=1)
    with pytest.raises(ToolchainFailed, match=r"took precision_config_file and wrote no precision.json"):
        target.compile(only(cached, tmp_path / "graphs"), cached / "calibration", options, tmp_path / "out")


def test_int8_without_one_int8_product_is_no_int8(doubles: Doubles, cached: Path, tmp_path: Path) -> None:
    options = target.Options(precision="int8", samples=1, float_nodes=("cross:*",))
    with pytest.raises(Broken, match="came out without one int8 product"):
        target.compile(only(cached, tmp_path / "graphs", "cross"), cached / "calibration", options, tmp_path / "out")


def test_the_probe_converts_two_ops(doubles: Doubles, tmp_path: Path) -> None:
    found = toolchain("mtk").call("targets.mtk.toolchain.probe", {}, tmp_path, 120)
    assert found["mtk_converter"] == "8.13.0"


def test_the_recipe_fits_the_npu() -> None:
    wanted = target.recipe("whisper")
    assert (wanted.decoder, wanted.decoder_length, wanted.host_embedding, wanted.window_s) == ("cached", 448, True, 30)
    assert target.TIERS[target.DEFAULT_BOARD] == "vendor-simulator"
