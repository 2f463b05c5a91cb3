"""A streaming transducer in Rockchip's toolkit: what a plan keeps float is float, and what it rounds is ranged."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.zipformer.calibrate import CalibrationOptions, calibrate
from models.zipformer.decode import features
from models.zipformer.export import export
from models.zipformer.stream import initial_states, run_chunk
from nightjar.graphs.fusion import fuse
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech
from nightjar.toolchains.environment import Toolchain
from targets import rknn as target
from targets.onnx.runner import open_runner
from targets.rknn.build import quantization
from targets.rknn.layer_mapping import INT8_ENTRY, read_names
from targets.rknn.ranges import ENDS, ENTRY

pytestmark = pytest.mark.slow

NANO = Path(__file__).resolve().parents[3] / "data" / "zipformer-nano"
OPTIONS = target.Options(precision="int8", samples=12)
MOVES = {"Transpose", "Reshape", "Slice", "Split", "Concat", "Cast", "exDataConvert"}
CHUNKS = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model's encoder alone, with calibration: graphs/, calibration/."""
    folder = tmp_path_factory.mktemp("nano")
    export(NANO, target.recipe("zipformer"), folder / "graphs")
    path = folder / "graphs" / "model.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    runner = open_runner(folder / "graphs", model["parts"])
    clips = load_speech(NANO / "calibration.jsonl")[:10]
    calibrate(
        folder / "graphs", folder / "hidden", clips, CalibrationOptions(samples=12), runner, folder / "calibration"
    )
    model["parts"] = {"encoder": model["parts"]["encoder"]}
    path.write_text(json.dumps(model), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def quantized(sdk: Toolchain, prepared: Path) -> Path:
    """Its quantization parameters."""
    quantization(prepared / "graphs", prepared / "calibration", OPTIONS, prepared / "quantized")
    return prepared / "quantized"


def entries(quantized: Path) -> dict[str, tuple[float, float]]:
    """Read every int8 range of the toolkit's file."""
    text = (quantized / "encoder.quantization.cfg").read_text(encoding="utf-8")
    quantizable_groups = set(INT8_ENTRY.findall(text))
    found = {name: ENDS.search(body) for name, body in ENTRY.findall(text) if name in quantizable_groups}
    return {name.strip('"'): (float(ends[1]), float(ends[2])) for name, ends in found.items() if ends}


def test_every_layer_that_computes_is_some_group_s(prepared: Path, quantized: Path) -> None:
    """Else a plan says float, and a swish, a norm or a GLU stays int8 unseen."""
    names = read_names(quantized / "encoder.quantization.cfg")
    groups = {names["tensors"].get(group.tensor) for group in fuse(onnx.load(prepared / "graphs" / "encoder.onnx"))}
    layers = onnx.load(quantized / "encoder.model", load_external_data=False).graph.node
    left = [layer.name for layer in layers if layer.op_type not in MOVES and not groups & {*layer.output}]
    assert not left
    assert None not in groups


def test_ranges_hold_all_samples(prepared: Path, quantized: Path) -> None:
    samples = list(CalibrationSet.open(prepared / "calibration").samples("encoder", OPTIONS.samples))
    found = entries(quantized)
    for toolkits, ours in {"x_rs": "x", "cached_conv2_4_rs": "cached_conv2_4"}.items():
        low, high = (float(pick([pick(sample[ours]) for sample in samples])) for pick in (np.min, np.max))
        assert found[toolkits][0] <= low + 1e-3
        assert found[toolkits][1] >= high - 1e-3
    # What the toolkit's one sample gave is hardly anywhere all: of a softmax, or where it was the loudest.
    text = (quantized / "encoder.quantization.cfg").read_text(encoding="utf-8")
    seen = re.compile(r"ori_min:\n        -   (\S+)\n        ori_max:\n        -   (\S+)\n")
    own = [
        name
        for name, body in ENTRY.findall(text)
        if (e := ENDS.search(body)) and (s := seen.search(body)) and e.groups() == s.groups()
    ]
    quantizable_groups = set(INT8_ENTRY.findall(text))
    assert len(quantizable_groups & {*own}) < 0.05 * len(quantizable_groups)


def test_a_plan_s_groups_are_float_and_states_always(
    sdk: Toolchain, prepared: Path, quantized: Path, tmp_path: Path
) -> None:
    """All planned float, nothing that computes or moves is int8; nothing planned, states are float all the same."""
    graph = prepared / "graphs" / "encoder.onnx"
    every = [group.tensor for group in fuse(onnx.load(graph))]
    shares = {}
    for name, kept in {"float": every, "int8": []}.items():
        plan = tmp_path / f"{name}.json"
        plan.write_text(json.dumps({"float": {"encoder": kept}, "whole": [], "rewrites": {}}), encoding="utf-8")
        options = OPTIONS.model_copy(update={"precision": "auto"})
        target.compile(prepared / "graphs", None, options, tmp_path / name, plan=plan, quantized=quantized)
        binary = json.loads((tmp_path / name / "binary.json").read_text(encoding="utf-8"))["parts"]["encoder"]
        layers = json.loads((tmp_path / name / binary["layers"]).read_text(encoding="utf-8"))
        shares[name] = (binary["int8_mac_share"], [layer["name"] for layer in layers if layer["bits"] == 8])
        crossing = crossings(tmp_path / name / "encoder.sim.onnx")
        assert len(crossing) == 2 * (1 + 30)
        assert {each.split()[1] for each in crossing} == {"float16"}
        # sherpa-onnx's runtime reads this, in a hybrid file too
        assert b"decode_chunk_len=64;" in (tmp_path / name / "encoder.rknn").read_bytes()
    assert shares["float"] == (0.0, [])
    assert shares["int8"][0] == 1.0
    assert len(shares["int8"][1]) > 500
    found = simulated(sdk, prepared, tmp_path)
    assert min(found["float"].values()) > 50  # dB, each state of each chunk
    assert 15 < found["int8"]["encoder_out"] < 50


def crossings(graph: Path) -> list[str]:
    """Name what a file takes and gives of what is no count, with the type in which it does."""
    model = onnx.load(graph, load_external_data=False).graph
    inputs, outputs = ({v.name for v in values if "len" not in v.name} for values in (model.input, model.output))
    found = []
    for node in model.node:
        if node.op_type == "exDataConvert":
            types = {each.name: each.s.decode() for each in node.attribute}
            found += [f"{name} {types['o_dtype']}" for name in node.input if name in inputs]
            found += [f"{name} {types['i_dtype']}" for name in node.output if name in outputs]
    return found


def simulated(sdk: Toolchain, prepared: Path, binaries: Path) -> dict[str, dict[str, float]]:
    """Return the SNR in dB of each output of each binary, on the chunks of a clip with the float states."""
    model = json.loads((prepared / "graphs" / "model.json").read_text(encoding="utf-8"))
    runner = open_runner(prepared / "graphs", model["parts"])
    clip = load_speech(NANO / "evaluation.jsonl")[0]
    states, listed, wanted = initial_states(model), [], []
    for number, x in enumerate(features(load_audio(clip.audio).astype(np.float32) / 32768, model)["x"][:CHUNKS]):
        files = {side: str(binaries / f"{number}.{side}.npz") for side in ("in", "out")}
        np.savez(files["in"], x=x[None], **states)
        _, states, outputs = run_chunk(runner, x, states, model, number)
        listed.append(files)
        wanted.append(outputs)
    heard = {name: np.full_like(v, 200_000) if "len" in name else v for name, v in states.items()}  # more than an hour
    files = {side: str(binaries / f"late.{side}.npz") for side in ("in", "out")}
    np.savez(files["in"], x=x[None], **heard)
    listed.append(files)
    wanted.append(runner.run("encoder", {"x": x[None], **heard}))
    found: dict[str, dict[str, float]] = {}
    for name in ("float", "int8"):
        job = {"do": "run", "binary": str(binaries / name), "samples": {"encoder": listed}}
        assert sdk.call("tests.targets.rknn.simulated", job, binaries, 240)["printed"] == ""
        got = [dict(np.load(files["out"])) for files in listed]
        found[name] = {
            key: snr_db([w[key] for w in wanted], [g[key] for g in got]) for key in wanted[0] if "len" not in key
        }
        for before, after in zip(wanted, got, strict=True):
            assert all((before[key] == after[key]).all() for key in before if "len" in key)
    return found


def snr_db(wanted: list[Any], got: list[Any]) -> float:
    """Return the SNR over all chunks."""
    left, right = (np.stack(arrays).astype(np.float64) for arrays in (wanted, got))
    return float(10 * np.log10((left**2).sum() / max(((left - right) ** 2).sum(), 1e-30)))
