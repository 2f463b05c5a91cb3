"""The Rockchip target with the real toolkit: what it calls int8 is int8, and the simulator is close to float."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from nightjar.errors import BadOptions, Broken, NightjarError, ToolchainFailed
from nightjar.graphs.fusion import quantizable_groups
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.ranges import GELU_SILENCE, collect_ranges
from nightjar.toolchains.environment import Toolchain
from targets import rknn as target
from targets.rknn.build import build_hybrid, evenly_spaced, quantization, samples_in_memory
from targets.rknn.layer_mapping import read_names
from targets.rknn.ranges import ENDS, ENTRY, write_ranges
from tests.targets.rknn.working import FP, INT8, copy_parts, parts_of, prepare, simulate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")]

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A random cached Whisper with calibration on two clips of noise; its look-ups are in the graph."""
    return prepare(random_checkpoint, tmp_path_factory.mktemp("cached"), decoder="cached")


@pytest.fixture(scope="module")
def quantized(sdk: Toolchain, cached: Path) -> Path:
    """Its quantization parameters."""
    quantization(cached / "graphs", cached / "calibration", INT8, cached / "quantized")
    return cached / "quantized"


@pytest.fixture(scope="module")
def int8(cached: Path, quantized: Path) -> Path:
    """The cached model in int8 with the default options."""
    target.compile(cached / "graphs", None, INT8, cached / "int8", quantized=quantized)
    return cached / "int8"


@pytest.fixture(scope="module")
def int8_snr_db(sdk: Toolchain, cached: Path, int8: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What the simulator makes of its parts, in dB."""
    return simulate(sdk, int8, cached, tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def fp(sdk: Toolchain, cached: Path) -> Path:
    """The cached model in float16."""
    target.compile(cached / "graphs", None, FP, cached / "fp")
    return cached / "fp"


def test_fp_is_float16_and_close_to_float(sdk: Toolchain, cached: Path, fp: Path, tmp_path: Path) -> None:
    described = json.loads((fp / "binary.json").read_text())
    assert (described["target"], described["precision"]) == ("rknn", "fp")
    assert list(described["parts"]) == ["encoder", "cross", "decoder"]
    for name, part in described["parts"].items():
        assert (part["runner"], part["file"], part["toolkit"]) == ("rknn", f"{name}.rknn", "2.5.0")
        assert part["size_bytes"] == (fp / part["file"]).stat().st_size > 0
        assert (part["int8_mac_share"], part["nodes_int8"]) == (0.0, 0)
        assert {e["bits"] for e in json.loads((fp / part["layers"]).read_text())} <= {16, 32, 64}
    model = json.loads((fp / "model.json").read_text())
    assert [part["file"] for part in model["parts"].values()] == ["encoder.rknn", "cross.rknn", "decoder.rknn"]
    assert described["parts"]["decoder"]["nodes_on_cpu"] == {"Gather": 2}
    assert min(simulate(sdk, fp, cached, tmp_path / "s").values()) > 50


def test_int8_is_int8_and_close_to_float(fp: Path, int8: Path, int8_snr_db: dict[str, float]) -> None:
    parts = parts_of(int8)
    shares = {name: part["int8_mac_share"] for name, part in parts.items()}
    assert shares["encoder"] == shares["cross"] == 1.0
    assert 0.9 < shares["decoder"] < 1  # attention with a mask is not
    for name, part in parts.items():
        assert part["size_bytes"] < parts_of(fp)[name]["size_bytes"]
        assert 0 < part["nodes_int8"] <= part["nodes_total"]
    layers = json.loads((int8 / "decoder.layers.json").read_text())
    attention = [entry["bits"] for entry in layers if entry["op"] == "exSDPAttention"]
    assert sorted(attention) == [8, 8, 16, 16]
    assert min(int8_snr_db.values()) > 20, int8_snr_db


def test_float_rules_rescue_attention_with_a_mask(
    sdk: Toolchain, cached: Path, quantized: Path, int8_snr_db: dict[str, float], tmp_path: Path
) -> None:
    """The mask's -10000 is in the range of the scores it is added to, whose int8 step is then 40."""
    names = read_names(quantized / "decoder.quantization.cfg")
    (tmp_path / "binary.json").write_text(json.dumps({"parts": {}}))
    entry = build_hybrid(sdk, quantized, cached / "graphs" / "decoder.onnx", "decoder", [], tmp_path)
    assert len(names["masked_attention"]) == 2
    assert entry["int8_mac_share"] == 1.0
    (tmp_path / "binary.json").write_text(json.dumps({"parts": {"decoder": entry}}))
    without = simulate(sdk, tmp_path, cached, tmp_path / "a")["decoder"]
    assert without + 5 < int8_snr_db["decoder"]


def test_named_nodes_stay_float(sdk: Toolchain, cached: Path, quantized: Path, int8: Path, tmp_path: Path) -> None:
    options = INT8.model_copy(update={"float_nodes": ("decoder:/blocks.1/mlp/*", "encoder:*/mlp.2/MatMul")})
    target.compile(cached / "graphs", None, options, tmp_path, quantized=quantized)
    for part, float_layers in (("decoder", ["/blocks.1/mlp/mlp.0", "/blocks.1/mlp/mlp.2"]), ("encoder", ["mlp.2"])):
        bits = {e["name"]: e["bits"] for e in json.loads((tmp_path / f"{part}.layers.json").read_text())}
        kept = {name for name, value in bits.items() if value == 16 and "MatMul#2" in name}
        assert kept
        assert all(any(prefix in name for prefix in float_layers) for name in kept)
        assert 0 < parts_of(tmp_path)[part]["int8_mac_share"] < parts_of(int8)[part]["int8_mac_share"]
    assert (tmp_path / "cross.rknn").read_bytes() == (int8 / "cross.rknn").read_bytes()


def test_a_plan_says_what_stays_float(sdk: Toolchain, cached: Path, quantized: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"float": {"cross": ["cross_k_0"]}}))
    one = tmp_path / "graphs"
    copy_parts(cached / "graphs", one, "cross")
    options = target.Options(precision="auto")
    target.compile(one, None, options, tmp_path / "out", plan=plan, quantized=quantized)
    assert parts_of(tmp_path / "out")["cross"]["int8_mac_share"] == 0.75
    for content, said in (
        ({"float": {"joiner": []}}, "names part 'joiner'"),
        ({"float": {"cross": ["cross_k_9"]}}, "no layer of cross.quantization.cfg computes cross_k_9"),
        ({"kept": []}, "is no plan"),
    ):
        plan.write_text(json.dumps(content))
        with pytest.raises(NightjarError, match=said) as caught:
            target.compile(one, None, options, tmp_path / "out", plan=plan, quantized=quantized)
        assert caught.value.exit_code == 2


def test_the_restored_simulator_gives_the_very_outputs_of_a_build(
    sdk: Toolchain, cached: Path, quantized: Path, fp: Path, int8: Path, tmp_path: Path
) -> None:
    part = "decoder"
    np.savez(tmp_path / "in.npz", **next(CalibrationSet.open(cached / "calibration").samples(part)))
    common = {"do": "in_process", "part": part, "sample": str(tmp_path / "in.npz")}
    job = {**common, "binary": str(fp), "graph": str(cached / "graphs" / "decoder.onnx")}
    found = sdk.call("tests.targets.rknn.simulated", job, tmp_path / "a", 120)
    assert all(found["equal"])
    assert max(found["noise"]) < 1e-5
    from targets.rknn.layer_mapping import write_float16_layers

    cfg, names = tmp_path / "kept.cfg", read_names(quantized / "decoder.quantization.cfg")
    float16 = [*names["masked_attention"], *names["boundary"]]
    write_float16_layers(quantized / "decoder.quantization.cfg", float16, cfg)
    files = {"model": str(quantized / "decoder.model"), "data": str(quantized / "decoder.data"), "cfg": str(cfg)}
    job = {**common, "binary": str(int8), **files}
    found = sdk.call("tests.targets.rknn.simulated", job, tmp_path / "b", 120)
    assert all(found["equal"])
    assert max(found["noise"]) < 1e-3


def test_the_same_inputs_give_the_same_bytes_and_nothing_beside_them(
    sdk: Toolchain, cached: Path, quantized: Path, fp: Path, int8: Path, tmp_path: Path
) -> None:
    one, here = tmp_path / "graphs", tmp_path / "here"
    copy_parts(cached / "graphs", one, "cross")
    here.mkdir()
    code = (
        "import sys; from pathlib import Path; from targets import rknn as t; a = [Path(x) for x in sys.argv[1:]]; "
        "t.compile(a[0], a[1], t.Options(), a[2] / 'fp'); "
        "t.compile(a[0], a[1], t.Options(precision='int8', samples=4), a[2] / 'int8')"
    )
    command = [sys.executable, "-c", code, *map(str, (one, cached / "calibration", tmp_path))]
    environment = {**os.environ, "PYTHONHASHSEED": "4", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(here.iterdir()) == []
    for binary, again in ((fp, tmp_path / "fp"), (int8, tmp_path / "int8")):
        made = {path.name for path in again.iterdir()} - {"binary.json", "model.json"}
        assert {"cross.rknn", "cross.sim.onnx", "cross.sim.json", "cross.layers.json"} == made
        for name in made:
            assert (again / name).read_bytes() == (binary / name).read_bytes(), f"{binary.name}/{name}"
        assert parts_of(again)["cross"] == parts_of(binary)["cross"]


def test_a_simulator_that_cannot_says_why_in_one_line(sdk: Toolchain, cached: Path, fp: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **next(CalibrationSet.open(cached / "calibration").samples("encoder")))
    job = {"do": "wrong", "binary": str(fp), "sample": str(tmp_path / "in.npz")}
    found = sdk.call("tests.targets.rknn.simulated", job, tmp_path / "s", 120)
    said = found["said"]
    assert said["part"] == "no part 'joiner' here: have encoder"
    assert said["input"] == "encoder takes mel, not mel, more"
    assert said["shape"] == "encoder takes mel as (1, 80, 1000), not (1, 1, 1000)"
    assert said["dtype"].startswith("the simulator cannot run encoder: inference gave no outputs: ")
    assert "float64" in said["dtype"]
    assert said["file"].endswith("for part 'encoder'")
    assert said["damaged"].startswith("the simulator cannot load ")
    assert all("\n" not in line and "Traceback" not in line for line in said.values())
    assert found["printed"] == ""


def test_what_the_toolkit_refuses_is_told_in_its_words(sdk: Toolchain, cached: Path, tmp_path: Path) -> None:
    broken = tmp_path / "graphs"
    copy_parts(cached / "graphs", broken, "cross")
    (broken / "cross.onnx").write_bytes(b"no graph")
    with pytest.raises(ToolchainFailed, match=r"compile\) failed: load_onnx: .*pars") as caught:
        target.compile(broken, None, FP, tmp_path / "out")
    assert "Traceback" not in str(caught.value)


def test_int8_without_one_int8_product_is_no_int8(cached: Path, quantized: Path, tmp_path: Path) -> None:
    one = tmp_path / "graphs"
    copy_parts(cached / "graphs", one, "cross")
    options = INT8.model_copy(update={"float_nodes": ("cross:*",)})
    with pytest.raises(Broken, match="part 'cross' came out without one int8 product"):
        target.compile(one, None, options, tmp_path / "out", quantized=quantized)


def test_every_product_has_a_layer(cached: Path, quantized: Path) -> None:
    for part in ("encoder", "cross", "decoder"):
        names = read_names(quantized / f"{part}.quantization.cfg")
        graph = onnx.load(cached / "graphs" / f"{part}.onnx").graph
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
        assert {node.name for node in products} <= names["nodes"].keys()
        assert {node.output[0] for node in products} <= names["tensors"].keys()
        assert set(names["tensors"].values()) <= set(names["outputs"])


def test_bad_options_are_said_before_anything_runs(cached: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not PART:GLOB"):
        target.Options(float_nodes=("decoder",))
    with pytest.raises(BadOptions, match="needs the plan of a precision search"):
        target.compile(cached / "graphs", None, target.Options(precision="auto"), tmp_path)
    with pytest.raises(BadOptions, match="is not PART:GLOB with a PART of encoder"):
        target.compile(cached / "graphs", None, target.Options(float_nodes=("joiner:*",)), tmp_path)


def test_int8_wants_calibration_and_globs_that_fit(cached: Path, quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOptions, match="int8 needs calibration data"):
        target.compile(cached / "graphs", None, INT8, tmp_path)
    other = INT8.model_copy(update={"soc": "rk3576"})
    with pytest.raises(BadOptions, match="were collected with target_platform rk3588, not rk3576"):
        target.compile(cached / "graphs", None, other, tmp_path, quantized=quantized)
    options = INT8.model_copy(update={"float_nodes": ("encoder:/nothing/*",)})
    with pytest.raises(BadOptions, match="'encoder:/nothing/\\*' fits no layer that could be int8"):
        target.compile(cached / "graphs", None, options, tmp_path, quantized=quantized)


def _entries(cfg: Path) -> dict[str, tuple[float, float]]:
    ends = {e[1]: ENDS.search(e[2]) for e in ENTRY.finditer(cfg.read_text())}
    return {name.strip('"'): (float(found[1]), float(found[2])) for name, found in ends.items() if found}


def test_ranges_over_all_samples_reach_the_toolkits_file(
    sdk: Toolchain, cached: Path, quantized: Path, tmp_path: Path
) -> None:
    one = INT8.model_copy(update={"quantized_algorithm": "normal", "samples": 1})
    copy_parts(cached / "graphs", tmp_path / "graphs", "encoder", "decoder")
    quantization(tmp_path / "graphs", cached / "calibration", one, tmp_path / "one")
    samples = CalibrationSet.open(cached / "calibration")
    for part in ("encoder", "decoder"):
        graph = onnx.load(cached / "graphs" / f"{part}.onnx")
        theirs, ours = (_entries(folder / f"{part}.quantization.cfg") for folder in (tmp_path / "one", quantized))
        looked_up = {node.input[0] for node in graph.graph.node if node.op_type == "Gather"}  # of its rows, of a sample
        constants = {tensor.name for tensor in graph.graph.initializer} - looked_up
        assert theirs.keys() == ours.keys()
        assert all(theirs[name] == ours[name] for name in constants & ours.keys())
        groups = quantizable_groups(graph)
        wanted = collect_ranges(graph, groups, samples.samples(part, 4))
        names = read_names(quantized / f"{part}.quantization.cfg")["tensors"]
        linear = [group.tensor for group in groups if group.kind in ("linear", "conv") and group.tensor in names]
        assert len(linear) > 5
        for tensor in linear:  # the toolkit knows them by other names
            assert ours[names[tensor]] == pytest.approx(wanted[tensor], abs=1e-4)
    # What the toolkit had of the same sample is found again, so every range stays but for a GELU's input.
    before = _entries(tmp_path / "one" / "encoder.quantization.cfg")
    copied = tmp_path / "encoder.quantization.cfg"
    copied.write_bytes((tmp_path / "one" / "encoder.quantization.cfg").read_bytes())
    graph = onnx.load(cached / "graphs" / "encoder.onnx")
    called = read_names(quantized / "encoder.quantization.cfg")["tensors"]
    sample = next(samples.samples("encoder"))
    assert write_ranges(copied, graph, sample, [sample], called) > len(before) / 2
    after = _entries(copied)
    changed = [name for name in before if after[name] != pytest.approx(before[name], rel=2e-3, abs=2e-3)]
    assert all(after[name][0] == GELU_SILENCE for name in changed)


def test_samples_fit_the_memory_and_spread_over_the_set(cached: Path, tmp_path: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(cached / "graphs" / "encoder.onnx"))
    assert samples_in_memory(graph, target.Options(samples=4)) == 4
    few = target.Options(samples=4, memory_gib=0.05)
    assert 1 <= samples_in_memory(graph, few) < 4
    assert samples_in_memory(graph, target.Options(memory_gib=1e-6)) == 1
    (tmp_path / "dataset.txt").write_text("".join(f"{number}.npy\n" for number in range(10)))
    assert evenly_spaced(tmp_path / "dataset.txt", 4).split() == ["0.npy", "2.npy", "5.npy", "7.npy"]
    assert len(evenly_spaced(tmp_path / "dataset.txt", 32).split()) == 10


def test_the_recipe_fits_the_npu() -> None:
    wanted = target.recipe("tiny.en")
    assert (wanted.decoder, wanted.host_embedding, wanted.window_s) == ("cached", True, 30)
    assert target.TIERS[target.DEFAULT_BOARD] == "vendor-simulator"
