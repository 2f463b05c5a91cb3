"""What the Hailo target decides without its SDK: cuts, layers, model scripts, reasons, and what fits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.whisper.export import export
from nightjar.errors import BadOptions
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.nhwc import from_nhwc, nhwc_shape, to_nhwc
from nightjar.graphs.onnx_graph import Graph
from nightjar.plugins.recipe import Recipe
from targets import hailo
from targets.hailo.failures import classify, level_used
from targets.hailo.graph import find_cut
from targets.hailo.known_windows import shorter_window, window_label
from targets.hailo.layers import Layer, int8_mac_share, layers_16bit, layers_of
from targets.hailo.model_script import allocation_script, optimization_script


def layer(name: str, *nodes: str, inputs: tuple[str, ...] = ()) -> Layer:
    return Layer(f"net/{name}", name.rstrip("0123456789"), nodes, inputs, ((-1, 1, 4, 8),))


@pytest.mark.parametrize("shape", [(1, 80, 1, 30), (1, 5, 8), (5, 8), (8,), (2, 3, 4, 5)])
def test_a_tensor_comes_back_from_channels_last(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    laid = to_nhwc(array)
    assert laid.flags.c_contiguous
    assert laid.shape == nhwc_shape(shape)
    np.testing.assert_array_equal(from_nhwc(laid, shape), array)
    np.testing.assert_array_equal(from_nhwc(laid.ravel(), shape), array)


def test_moves_are_made_in_order() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    found = from_nhwc(to_nhwc(rows), (1, 4, 6), [["reshape", [4, 2, 3]], ["transpose", [1, 2, 0]]])
    np.testing.assert_array_equal(found, rows.reshape(4, 2, 3).transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r"\(7,\) where the graph has \(1, 4, 6\)"):
        from_nhwc(np.zeros(7), (1, 4, 6))


def test_a_graph_that_looks_tokens_up_is_not_cut(random_checkpoint: Path, tmp_path: Path) -> None:
    export(random_checkpoint, Recipe(window_s=1, decoder="static", decoder_length=16), tmp_path)
    graph = Graph(onnx.load(tmp_path / "decoder.onnx"))
    with pytest.raises(BadOptions, match=r"not support Gather, and the decoder has one at '/token_embedding/Gather'"):
        find_cut("decoder", graph)


def test_an_output_that_nothing_computes_is_no_end() -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], name="turn", perm=[0, 2, 1])
    values = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 2, 3]), ("y", [1, 3, 2])))
    one, other = values
    model = helper.make_model(helper.make_graph([node], "g", [one], [other]))
    with pytest.raises(BadOptions, match="outputs y without computing anything"):
        find_cut("cross", Graph(model))


def test_groups_find_the_layers_that_do_their_work(random_checkpoint: Path, tmp_path: Path) -> None:

    export(
        random_checkpoint, hailo.recipe("whisper").model_copy(update={"window_s": 1, "decoder_length": 16}), tmp_path
    )
    groups = quantizable_groups(onnx.load(tmp_path / "encoder.onnx"))
    by_kind = {kind: [g for g in groups if g.kind == kind] for kind in ("conv", "gelu", "attention", "add")}
    conv, gelu = by_kind["conv"][0], by_kind["gelu"][0]
    attention, add = by_kind["attention"][0], by_kind["add"][0]
    layers = [
        layer("input_layer1", "mel"),
        layer("conv1", *conv.nodes),  # that its GELU is of it too, it does not say
        layer("matmul1", attention.nodes[0]),
        layer("softmax1", attention.nodes[1]),
        layer("ew_add1", *add.nodes),
    ]
    found = layers_of(groups, layers)
    assert [each.own_name for each in found[gelu.tensor]] == ["conv1"]
    assert [each.own_name for each in found[attention.tensor]] == ["matmul1", "softmax1"]
    named = {gelu.tensor, attention.tensor, add.tensor}
    assert [each.own_name for each in layers_16bit(groups, layers, named, False)] == ["conv1", "ew_add1"]
    assert len(layers_16bit(groups, layers, named, True)) == 4
    share = int8_mac_share(groups, layers, [layers[1]])
    assert share == pytest.approx(attention.macs / sum(group.macs for group in groups), abs=1e-3)
    assert int8_mac_share([], [], []) == 0.0


def test_a_script_has_the_commands_of_the_layers_there_are() -> None:
    layers = [layer("conv1"), layer("output_layer1")]
    plain = optimization_script(layers, [], 200, hailo.Options())
    assert plain.splitlines() == [
        "model_optimization_flavor(optimization_level=2, compression_level=0)",
        "model_optimization_config(calibration, batch_size=8, calibset_size=200)",
        "model_optimization_config(checker_cfg, policy=disabled)",
    ]
    layers += [layer("ew_add1"), layer("matmul1"), layer("layer_normalization1")]
    options = hailo.Options(
        optimization_level=1,
        calibration_batch=2,
        finetune_epochs=4,
        noise_analysis="advanced",
        layer_norm_decomposition=True,
        compiler_effort="max",
    )
    whole = optimization_script(layers, [layers[0], layers[1]], 50, options, keep_dead=True)
    for line in (
        "optimization_level=1",
        "checker_cfg, policy=enabled, batch_size=1, analyze_mode=advanced)",
        "(ew_add_fusing, policy=disabled)",
        "(matmul_correction, layers={matmul*}, correction_type=zp_comp_block)",
        "(matmul_equalization, layers={matmul*}, matmul_bias=enabled)",
        "(layer_norm_decomposition, ",
        "(dead_layers_removal, policy=disabled)",
        "(finetune, policy=enabled, dataset_size=50, epochs=4, learning_rate=0.00001, batch_size=2)",
        "quantization_param(conv1, precision_mode=a16_w16)",
        "quantization_param(output_layer1, precision_mode=a16_w16)",
        "performance_param(compiler_optimization_level=max, optimize_for_batch=1)",
    ):
        assert line in whole, line
    assert "analyze_mode" not in optimization_script(layers, [], 50, hailo.Options(noise_analysis="checker"))
    assert allocation_script(0.8) == "resources_param(max_utilization=0.8)\n"


@pytest.mark.parametrize(
    ("kind", "message", "sort", "again"),
    [
        ("ParsingWithRecommendationException", "Parsing failed.\nUnsupportedOperationError in op /x", "graph", False),
        ("UnsupportedModelError", "Unexpected input_shapes at normalization layer", "graph", False),
        ("AccelerasUnsupportedError", "Unsupported layers for the provided optimization target.", "precision", False),
        ("BackendAllocatorException", "Compilation failed: No successful assignments: conv215_dc", "fit", False),
        ("BackendAllocatorException", "Compiler could not find a valid partition to contexts.", "fit", False),
        ("IndexError", "dead_layers_removal", "dead layers", False),
        ("ResourceExhaustedError", "OOM when allocating tensor", "memory", True),
        ("ValueError", "", "unknown", True),
    ],
)
def test_what_people_have_met_is_sorted(kind: str, message: str, sort: str, again: bool) -> None:
    failure = classify(kind, message)
    assert (failure.kind, failure.retryable) == (sort, again)
    assert failure.reason.startswith(kind)
    assert "\n" not in failure.reason


@pytest.mark.parametrize(
    ("log", "asked", "used", "why"),
    [
        ("", 2, 2, ""),
        ("[info] Using default optimization level of 2", 0, 2, ""),
        (
            "[warning] Reducing optimization level to 0 (the accuracy won't be optimized and compression won't be "
            "used) because there's no available GPU\n[warning] Running model optimization with zero level",
            2,
            0,
            "there's no available GPU",
        ),
        ("[warning] Reducing optimization level to 1 because there's less data than", 4, 1, "there's less data than"),
        ("Reducing compression level to 0 because requested optimization level equal or less than 1", 1, 1, ""),
    ],
)
def test_the_level_is_read_from_the_log(log: str, asked: int, used: int, why: str) -> None:
    assert level_used(log, asked) == (used, why)


@pytest.mark.parametrize(
    ("width", "frames", "known", "said"),
    [
        (384, 3000, False, "give --window 10, the fallback that is known to fit for tiny"),
        (384, 1000, True, "this window is known to fit otherwise"),
        (512, 1000, False, "give --window 5, the fallback that is known to fit for base"),
        (768, 500, False, "no size of this model is known to fit"),
    ],
)
def test_the_fallback_that_is_known_to_fit_is_called_so(width: int, frames: int, known: bool, said: str) -> None:
    model: dict[str, Any] = {"dims": {"n_audio_state": width}, "n_frames": frames}
    label = window_label(model)
    assert label["known_to_fit"] is known
    assert label["seconds"] == frames / 100
    assert said in shorter_window(model)
    assert json.dumps(label)
