"""What stands in for the DFC: Hailo's schemes on onnxruntime, and nothing that passes for the SDK's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import quantizable_groups
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.fake_quantize import A8_W8, A16_W8, A16_W16, fake_quantize
from nightjar.quantization.ranges import collect_ranges
from targets.hailo import stand_in
from targets.hailo.stand_in import runner as own_runner
from targets.hailo.stand_in.options import read_ranges
from targets.onnx import runner as onnx_runner

INT8 = stand_in.Options(precision="int8")


def described(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())
    return found


def snr_db(folder: Path, binary: Path, part: str) -> float:
    sample = next(iter(CalibrationSet.open(folder / "calibration").samples(part)))
    parts = json.loads((folder / "graphs" / "model.json").read_text())["parts"]
    exact = onnx_runner.open_runner(folder / "graphs", {part: parts[part]}, {"threads": 1}).run(part, sample)
    opened = own_runner.open_runner(binary, {part: described(binary)["parts"][part]}, {"threads": 1})
    found = opened.run(part, sample)
    opened.close()
    signal = sum(float((array.astype(float) ** 2).sum()) for array in exact.values())
    noise = sum(float(((array - found[name]).astype(float) ** 2).sum()) for name, array in exact.items())
    return float(10 * np.log10(signal / max(noise, 1e-20)))


@pytest.fixture(scope="module")
def made(cached: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float, a8_w8 throughout, and with residual sums in 16 bits."""
    folder = tmp_path_factory.mktemp("stand_in")
    options = {
        "fp": stand_in.Options(),
        "plain": INT8.model_copy(update={"residuals_16bit": False}),
        "int8": INT8,
        "wide": INT8.model_copy(update={"float_nodes": ("encoder:*",), "attention_16bit": True}),
        "a16_w8": INT8.model_copy(update={"float_nodes": ("encoder:*",), "attention_16bit": True, "wide": "a16_w8"}),
    }
    for name, each in options.items():
        stand_in.compile(cached / "graphs", cached / "calibration", each, folder / name)
    return {name: folder / name for name in options}


def test_more_bits_lose_less(cached: Path, made: dict[str, Path]) -> None:
    found = {name: snr_db(cached, binary, "encoder") for name, binary in made.items()}
    assert found["fp"] > 120
    assert found["plain"] < found["int8"] < found["a16_w8"] < found["wide"], found
    assert found["wide"] > 60


def test_what_it_is_stands_in_its_files(made: dict[str, Path], cached: Path) -> None:
    for name, binary in made.items():
        content = described(binary)
        assert content["target"] == "hailo.stand_in"
        assert content["parts"]["encoder"]["runner"] == "hailo.stand_in"
        assert content["parts"]["decoder"]["runner"] == content["parts"]["cross"]["runner"] == "onnx"
        assert not [path for path in binary.rglob("*") if path.suffix in (".hef", ".har", ".alls")]
        assert content["parts"]["encoder"]["int8_mac_share"] == {"plain": 1.0, "int8": 1.0}.get(name, 0.0)
    schemes = described(made["int8"])["parts"]["encoder"]["schemes"]
    adds = sum(group.kind == "add" for group in quantizable_groups(onnx.load(cached / "graphs" / "encoder.onnx")))
    assert schemes["a16_w16"] == adds
    assert described(made["a16_w8"])["parts"]["encoder"]["schemes"]["a16_w8"] > adds
    assert stand_in.TIERS == {"stand-in": "stand-in"}


def test_rounding_is_computed_in_float(made: dict[str, Path]) -> None:
    """Fused integer kernels round otherwise than Hailo's schemes."""
    opened = own_runner.open_runner(made["int8"], {"encoder": described(made["int8"])["parts"]["encoder"]})
    settings = opened.sessions["encoder"].result().get_session_options()
    assert settings.get_session_config_entry("session.disable_quant_qdq") == "1"
    opened.close()


def test_the_same_inputs_give_the_same_bytes(cached: Path, made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    stand_in.quantization(cached / "graphs", cached / "calibration", INT8, tmp_path / "q")
    stand_in.compile(cached / "graphs", None, INT8, tmp_path / "again", quantized=tmp_path / "q")
    for name in ("encoder.onnx", "cross.onnx", "decoder.onnx", "binary.json", "model.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made["int8"] / name).read_bytes(), name


def test_what_the_sdk_would_not_take_is_refused_here_too(cached: Path, static: Path, tmp_path: Path) -> None:
    def compiled(folder: Path, calibration: bool = True, **changes: Any) -> None:
        given = folder / "calibration" if calibration else None
        stand_in.compile(folder / "graphs", given, INT8.model_copy(update=changes), tmp_path / "b")

    with pytest.raises(BadOptions, match="keep a KV cache"):
        compiled(cached, npu=("encoder", "decoder"))
    with pytest.raises(BadOptions, match="int8 needs calibration data"):
        compiled(cached, calibration=False)
    with pytest.raises(BadOptions, match="needs the plan of a precision search"):
        compiled(cached, precision="auto")
    with pytest.raises(BadOptions, match="holds no ranges"):
        read_ranges(tmp_path)
    compiled(static, npu=("encoder", "decoder"))
    assert snr_db(static, tmp_path / "b", "decoder") > 8
    parts = described(tmp_path / "b")["parts"]
    with pytest.raises(RuntimeError, match="no part 'joiner'"):
        own_runner.open_runner(tmp_path / "b", parts).run("joiner", {})
    with pytest.raises(RuntimeError, match="onnxruntime cannot run encoder"):
        own_runner.open_runner(tmp_path / "b", parts).run("encoder", {})
    (tmp_path / "b" / "encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(RuntimeError, match=r"cannot load .*encoder\.onnx"):
        own_runner.open_runner(tmp_path / "b", parts)
    (tmp_path / "b" / "encoder.onnx").unlink()
    with pytest.raises(RuntimeError, match=r"no file .*encoder\.onnx"):
        own_runner.open_runner(tmp_path / "b", parts)


def test_a_mild_mask_is_what_lets_a_masked_attention_be_rounded(static: Path, tmp_path: Path) -> None:
    """The mask is in the range of the scores it is added to: at -10000 their 8-bit step would be 40."""
    graph = Graph(onnx.load(static / "graphs" / "decoder.onnx"))
    groups = quantizable_groups(graph.model)
    ranges = collect_ranges(graph, groups, CalibrationSet.open(static / "calibration").samples("decoder"))
    masked = [group for group in groups if group.kind == "attention" and any("Add" in node for node in group.nodes)]
    steps = [(ranges[group.inner[0]][1] - ranges[group.inner[0]][0]) / 255 for group in masked]
    assert steps
    assert max(steps) < 1.5


def test_each_group_reads_and_writes_in_its_own_bits(cached: Path) -> None:
    graph = Graph(onnx.load(cached / "graphs" / "encoder.onnx"))
    groups = quantizable_groups(graph.model)
    ranges = collect_ranges(graph, groups, CalibrationSet.open(cached / "calibration").samples("encoder"))
    sample = next(iter(CalibrationSet.open(cached / "calibration").samples("encoder")))
    tensors = {kind: next(group.tensor for group in groups if group.kind == kind) for kind in ("conv", "add", "norm")}
    for scheme, most in ((A8_W8, 2**8), (A16_W8, 2**16), (A16_W16, 2**16)):
        model = fake_quantize(graph, groups, ranges, schemes={tensors["add"]: scheme})
        model.graph.output.append(graph.values[tensors["add"]])
        values = open_session(model).run([tensors["add"]], sample)[0]
        low, high = ranges[tensors["add"]]
        levels = np.unique(np.rint(values / ((min(0, low), max(high, 0))[1] - min(0, low)) * (most - 1)))
        assert len(levels) <= most
        assert (len(np.unique(values)) > 2**8) == (most > 2**8)
    domains = {node.domain for node in fake_quantize(graph, groups, ranges).graph.node}
    assert domains == {""}, "8 bits alone need nothing of onnxruntime's own"
