"""The reference target: what it calls int8 is int8, runs as int8, and is still close to float."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile as sf
from pydantic import ValidationError

from models.whisper import decode
from models.whisper.calibrate import CalibrationOptions, calibrate, load_hidden
from models.whisper.export import export
from nightjar.errors import BadInput, BadOptions, Broken
from nightjar.graphs.onnx_graph import load_graph
from nightjar.plugins.recipe import Recipe
from nightjar.quantization.calibration_set import CalibrationSet, CalibrationWriter
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, load_speech
from targets import onnx as target
from targets.onnx.compare_with_float import measure
from targets.onnx.quantize import float_by_rule, linear_nodes
from targets.onnx.runner import open_runner
from tests.conftest import SPEECH, need, real_weights
from tests.models.whisper.reference import agree

# openai-whisper's tokenizer, which export asks, leaves its vocabulary file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")

ROOT = Path(__file__).resolve().parents[3]
INT8 = target.Options(precision="int8")
ONE = {"threads": 1}  # more would spin against whatever else the machine runs


def _noise(folder: Path, number: int) -> Clip:
    path = folder / f"{number}.wav"
    sf.write(path, np.cumsum(np.random.default_rng(number).normal(size=32000)) * 1e-3, 16000)
    return Clip(id=str(number), audio=path, text="", duration_s=2.0, speaker=str(number))


def _prepare(checkpoint: Path, recipe: Recipe, clips: list[Clip], folder: Path, samples: int) -> Path:
    """Export, harvest and calibrate into graphs/, hidden/ and calibration/."""
    graphs = folder / "graphs"
    export(checkpoint, recipe, graphs)
    model = json.loads((graphs / "model.json").read_text())
    runner = open_runner(graphs, model["parts"], ONE)
    (folder / "hidden").mkdir()
    for clip in clips:
        hidden = decode.encode(runner, _features(clip, model), model)["hidden"]
        np.save(folder / "hidden" / f"{clip.id}.hidden.npy", hidden[0].astype(np.float16))
    options = CalibrationOptions(samples=samples, decoder_clips=4)
    calibrate(graphs, folder / "hidden", clips, options, runner, folder / "calibration")
    return folder


def _features(clip: Clip, model: dict[str, Any]) -> dict[str, np.ndarray]:
    return decode.features(load_audio(clip.audio).astype(np.float32) / 32768, model)


# A processor without VNNI adds products of uint8 and int8 in 16 bits, which saturate: 16.5 dB, others stay above 20.
CLOSE_DB = 15


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A random cached Whisper with calibration on three clips of noise."""
    folder = tmp_path_factory.mktemp("small")
    clips = [_noise(folder, number) for number in range(3)]
    recipe = Recipe(window_s=10, decoder="cached", decoder_length=64)
    return _prepare(random_checkpoint, recipe, clips, folder, samples=20)


@pytest.fixture(scope="module")
def int8(small: Path) -> Path:
    """The small model compiled to int8 with the default options."""
    target.compile(small / "graphs", small / "calibration", INT8, small / "int8")
    return small / "int8"


def _description(binary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((binary / "binary.json").read_text())
    return found


def _snr_db(exact: np.ndarray, found: np.ndarray) -> float:
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


def _outputs(folder: Path, files: dict[str, Any], calibration: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    runner, found = open_runner(folder, files, ONE), CalibrationSet.open(calibration)
    return {part: [runner.run(part, sample) for sample in found.samples(part)] for part in files}


def test_float_is_the_graphs_but_for_attention_and_lanes(small: Path, tmp_path: Path) -> None:
    target.compile(small / "graphs", None, target.Options(), tmp_path)
    described = _description(tmp_path)
    assert (described["target"], described["precision"]) == ("onnx", "fp")
    assert list(described["parts"]) == ["encoder", "cross", "decoder"]
    for name, part in described["parts"].items():
        if name == "cross":  # the encoder is fused (test_fused.py), the decoder takes several clips at once
            assert (tmp_path / part["file"]).read_bytes() == (small / "graphs" / part["file"]).read_bytes()
        assert part["runner"] == "onnx"
        assert (part["int8_mac_share"], part["nodes_int8"]) == (0.0, 0)
        assert part["size_bytes"] == (tmp_path / part["file"]).stat().st_size
    assert (tmp_path / "model.json").read_bytes() == (small / "graphs" / "model.json").read_bytes()


def test_int8_is_int8_in_the_file_and_in_what_runs(small: Path, int8: Path) -> None:
    parts = _description(int8)["parts"]
    shares = {name: part["int8_mac_share"] for name, part in parts.items()}
    assert shares["cross"] == 1.0
    assert 0.1 < shares["encoder"] < 0.9
    assert shares["decoder"] > 0.8
    for name, part in parts.items():
        kept = load_graph(small / "graphs" / part["file"])
        assert part["nodes_int8"] == len(list(linear_nodes(kept))) - len(float_by_rule(kept)), name
        assert part["nodes_run_int8"] == part["nodes_int8"], f"{name}: onnxruntime runs int8 layers in float"
        assert part["size_bytes"] < (small / "graphs" / part["file"]).stat().st_size
    # The table is there twice, for the look-up and for the head: two bytes per element instead of four.
    assert parts["decoder"]["size_bytes"] < (small / "graphs" / "decoder.onnx").stat().st_size * 0.6
    weights = {t.data_type for t in onnx.load(int8 / "cross.onnx").graph.initializer if len(t.dims) == 2}
    assert weights == {onnx.TensorProto.INT8}


def test_int8_is_close_to_float(small: Path, int8: Path) -> None:
    parts = _description(int8)["parts"]
    exact = _outputs(small / "graphs", parts, small / "calibration")
    found = _outputs(int8, parts, small / "calibration")
    for part, name in (("encoder", "hidden"), ("cross", "cross_k_0"), ("decoder", "logits")):
        snr_db = [_snr_db(a[name], b[name]) for a, b in zip(exact[part], found[part], strict=True)]
        assert min(snr_db) > CLOSE_DB, part


def test_measure_tells_float_from_int8(small: Path, int8: Path, tmp_path: Path) -> None:
    target.compile(small / "graphs", None, target.Options(), tmp_path)
    same = measure(small / "graphs", tmp_path, small / "calibration", limit=2)
    rounded = measure(small / "graphs", int8, small / "calibration", limit=2)
    for part in ("encoder", "cross", "decoder"):
        assert same[part]["snr_db"] > 100 > rounded[part]["snr_db"] > CLOSE_DB


def test_the_same_calibration_gives_the_same_bytes_in_another_process(small: Path, int8: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from targets import onnx as t; "
        "t.compile(*map(Path, sys.argv[1:3]), t.Options(precision='int8'), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, *map(str, (small / "graphs", small / "calibration", tmp_path))]
    environment = {**os.environ, "PYTHONHASHSEED": "4", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", ""), "onnxruntime's quantizer is not silent"
    for path in int8.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_int8_decodes(small: Path, int8: Path) -> None:
    model = json.loads((int8 / "model.json").read_text())
    encoded = {"hidden": load_hidden(small / "hidden", "0", model)}
    result = decode.decode(open_runner(int8, _description(int8)["parts"]), encoded, model)
    assert result["steps"] > 0


@pytest.mark.parametrize(("protocol", "host_embedding"), [("window", False), ("static", True)])
def test_the_other_protocols_are_int8_and_close_too(
    random_checkpoint: Path, tmp_path: Path, protocol: Any, host_embedding: bool
) -> None:
    recipe = Recipe(window_s=10, decoder=protocol, decoder_length=64, host_embedding=host_embedding)
    _prepare(random_checkpoint, recipe, [_noise(tmp_path, 5)], tmp_path, samples=6)
    target.compile(tmp_path / "graphs", tmp_path / "calibration", INT8, tmp_path / "int8")
    decoder = _description(tmp_path / "int8")["parts"]["decoder"]
    assert decoder["nodes_run_int8"] == decoder["nodes_int8"] > 0
    assert (tmp_path / "int8" / "token_embedding.npy").exists() == host_embedding
    exact = _outputs(tmp_path / "graphs", {"decoder": decoder}, tmp_path / "calibration")["decoder"]
    found = _outputs(tmp_path / "int8", {"decoder": decoder}, tmp_path / "calibration")["decoder"]
    name = "out" if protocol == "window" else "logits"
    assert min(_snr_db(a[name], b[name]) for a, b in zip(exact, found, strict=True)) > CLOSE_DB


def test_nodes_are_kept_float_on_request(small: Path, tmp_path: Path) -> None:
    options = target.Options(precision="int8", float_rules=False, float_nodes=("decoder:/Gemm", "encoder:*/query/*"))
    target.compile(small / "graphs", small / "calibration", options, tmp_path)
    encoder, decoder = (load_graph(tmp_path / f"{part}.onnx") for part in ("encoder", "decoder"))
    floats = {node.name for node in linear_nodes(decoder)}
    assert floats == {"/Gemm"}
    assert sum("query" in node.name for node in linear_nodes(encoder)) == len(list(linear_nodes(encoder))) == 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"float_nodes": ("encoder:/blocks.9/*",)}, BadOptions, "fits no layer"),
        ({"float_nodes": ("/blocks.0/*",)}, BadOptions, "PART:GLOB"),
        ({"float_nodes": ("joiner:*",)}, BadOptions, "encoder, cross, decoder"),
        ({"float_nodes": ("encoder:*",)}, Broken, "without one int8 layer"),
    ],
)
def test_options_that_fit_nothing_are_refused(
    small: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        target.compile(small / "graphs", small / "calibration", target.Options(precision="int8", **options), tmp_path)


def test_refuses_what_it_cannot_build(small: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOptions, match="calibration"):
        target.compile(small / "graphs", None, INT8, tmp_path / "a")
    with pytest.raises(ValidationError):
        target.Options(precision="int4")  # type: ignore[arg-type]
    whole = CalibrationSet.open(small / "calibration")
    writer = CalibrationWriter(tmp_path / "some", {"encoder": whole.inputs("encoder")})
    (sample,) = [s for s, _ in zip(whole.samples("encoder"), range(1), strict=False)]
    writer.add("encoder", {"mel": writer.store("encoder", "mel", "mel.npy", sample["mel"])})
    writer.close({})
    with pytest.raises(BadInput, match="no samples for part 'cross'"):
        target.compile(small / "graphs", tmp_path / "some", INT8, tmp_path / "b")
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    model = json.loads((small / "graphs" / "model.json").read_text())
    for part in model["parts"].values():
        (graphs / part["file"]).write_bytes(b"no graph")
    (graphs / "model.json").write_text(json.dumps(model))
    with pytest.raises(Broken, match="cannot load"):
        target.compile(graphs, None, target.Options(), tmp_path / "c")
    model["recipe"]["graph_format"] = "torchscript"
    (graphs / "model.json").write_text(json.dumps(model))
    with pytest.raises(BadOptions, match="TorchScript"):
        target.compile(graphs, None, target.Options(), tmp_path / "d")


def test_importing_the_target_needs_no_onnx() -> None:
    code = "import sys, targets.onnx; assert not {'onnx', 'onnxruntime', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_real_weights_survive(tmp_path: Path) -> None:
    """Real weights have outliers, which random ones do not: plain w8a8 leaves 2.7 dB of this encoder."""
    need("shared", SPEECH.is_dir(), "real speech: NIGHTJAR_DATA")
    weights = real_weights("tiny.en")
    calibration, evaluation = (
        [clip for clip in load_speech(SPEECH / name) if 4 < clip.duration_s <= 10]
        for name in ("calibration.jsonl", "evaluation.jsonl")
    )
    folder = _prepare(weights, Recipe(window_s=10, decoder="cached"), calibration[::16], tmp_path, samples=8)
    target.compile(folder / "graphs", folder / "calibration", INT8, folder / "int8")
    model = json.loads((folder / "graphs" / "model.json").read_text())
    parts = _description(folder / "int8")["parts"]
    assert parts["encoder"]["int8_mac_share"] > 0.3
    assert parts["decoder"]["size_bytes"] < 60e6
    exact, found = (open_runner(folder / name, parts, ONE) for name in ("graphs", "int8"))
    same = steps = 0
    for clip in evaluation[::50]:
        encoded = decode.encode(exact, _features(clip, model), model)
        int8 = decode.encode(found, _features(clip, model), model)
        assert _snr_db(encoded["hidden"], int8["hidden"]) > 20
        tokens = decode.decode(exact, encoded, model)["tokens"]
        same += agree(found, int8, model, tokens)
        steps += len(tokens) + 1
    assert same / steps > 0.9
