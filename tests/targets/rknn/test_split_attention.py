"""A split attention in the real toolkit: int8 products, a float16 softmax, and a float16 boundary."""

import json
from pathlib import Path

import pytest

from nightjar.graphs.onnx_file import load_model
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.graph_rewrites import propose_rewrites, rewrite_graphs
from nightjar.toolchains.environment import Toolchain
from targets import rknn as target
from targets.rknn.build import build_hybrid, quantization
from targets.rknn.layer_mapping import read_names
from tests.targets.rknn.working import INT8, copy_parts, prepare, simulate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")]


def test_products_of_a_split_attention_are_int8_and_lose_less_than_the_fused_one(
    sdk: Toolchain, random_checkpoint: Path, tmp_path: Path
) -> None:
    cached = prepare(random_checkpoint, tmp_path, decoder="cached")
    whole, graphs = tmp_path / "whole", tmp_path / "split"
    copy_parts(cached / "graphs", whole, "encoder")
    samples = CalibrationSet.open(cached / "calibration").samples("encoder", 2)
    moves = [m for m in propose_rewrites(load_model(whole / "encoder.onnx"), samples, target.TRAITS)]
    splits = [move for move in moves if move["move"] == "split_softmax"]
    assert len(splits) == 2, "one a block"
    rewrite_graphs(whole, {"encoder": splits}, graphs)
    snr_db = {}
    for name, folder in (("fused", whole), ("split", graphs)):
        quantization(folder, cached / "calibration", INT8, tmp_path / f"{name}-parameters")
        names = read_names(tmp_path / f"{name}-parameters" / "encoder.quantization.cfg")
        softmax = [move["tensor"] for move in splits] if name == "split" else []
        kept = [*names["boundary"], *softmax, *(f"{tensor}.split.low" for tensor in softmax)]
        others = [tensor for tensor in names["tensors"] if "/attn/" not in tensor]  # so that attention alone is int8
        out = tmp_path / f"{name}-binary"
        out.mkdir()
        entry = build_hybrid(
            sdk, tmp_path / f"{name}-parameters", folder / "encoder.onnx", "encoder", [*kept, *others], out
        )
        (out / "binary.json").write_text(json.dumps({"parts": {"encoder": entry}}))
        snr_db[name] = simulate(sdk, out, cached, tmp_path / f"{name}-simulated")["encoder"]
        layers = {entry["name"]: entry for entry in json.loads((out / "encoder.layers.json").read_text())}
        products = [e for e in layers.values() if e["op"] in ("exMatMul", "exSDPAttention")]
        assert {(e["bits"], e["target"]) for e in products} == {(8, "NPU")}
        assert len(products) == {"fused": 2, "split": 6}[name]
        assert {e["bits"] for e in layers.values() if e["op"] in ("exSoftmax13", "Clip")} == (
            {16} if softmax else set()
        )
        crossing = {e["bits"] for n, e in layers.items() if n in ("mel_rs", "hidden-rs")}
        assert crossing == {16}
    assert snr_db["split"] > snr_db["fused"] + 3, snr_db
