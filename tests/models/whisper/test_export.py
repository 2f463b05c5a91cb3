"""The graphs themselves: what an NPU's compiler will meet, and that the same inputs give the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import ModelDimensions, Whisper

from models.whisper import decode, tokens
from models.whisper.checkpoint import load_checkpoint
from models.whisper.export import build_parts, clamp_recipe, export
from nightjar.errors import BadOptions
from nightjar.plugins.recipe import Recipe
from targets.onnx.runner import open_runner
from targets.torchscript import runner as torchscript
from tests.models.whisper.reference import agree

ROOT = Path(__file__).resolve().parents[3]
DECODERS = ("window", "static", "cached")
# Every op of the graphs: one that is not here must be looked up in each vendor's list first.
OPS = {"Add", "Concat", "Constant", "Conv", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul"} | {
    "Reshape",
    "Softmax",
    "Transpose",
}

ENGLISH = {"tokens": {"languages": {}}}


def token_table(n_vocab: int) -> dict[str, Any]:
    vocabulary = next(each for each in tokens.VOCABULARIES if each.size == n_vocab)
    return tokens.token_table(n_vocab, vocabulary)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"window_s": 5, "decoder_length": 64, **changes})


@pytest.fixture(scope="module")
def graphs(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """ONNX graphs of every protocol, with and without host embedding."""
    folders = {}
    for decoder in DECODERS:
        for host in (False, True):
            folders[decoder, host] = tmp_path_factory.mktemp(f"{decoder}-{host}")
            export(random_checkpoint, recipe(decoder=decoder, host_embedding=host), folders[decoder, host])
    return folders


CASES = pytest.mark.parametrize(("decoder", "host"), [(d, h) for d in DECODERS for h in (False, True)])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@CASES
def test_graphs_are_static_flat_and_finite(graphs: dict[tuple[str, bool], Path], decoder: str, host: bool) -> None:
    folder = graphs[decoder, host]
    names = {"encoder", "decoder"} | ({"cross"} if decoder == "cached" else set())
    assert {path.stem for path in folder.glob("*.onnx")} == names
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        assert {node.op_type for node in graph.node} <= OPS
        for value in [*graph.input, *graph.output, *graph.value_info]:
            shape = value.type.tensor_type.shape.dim
            assert len(shape) <= 4, value.name
            assert all(axis.HasField("dim_value") and axis.dim_value > 0 for axis in shape), value.name
        described = {value.name for value in [*graph.output, *graph.value_info]}
        assert {name for node in graph.node for name in node.output} <= described
        constants = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
        constants += [
            onnx.numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"
        ]
        assert all(np.isfinite(constant).all() for constant in constants)
        # Nothing but lookups and shapes is an integer: an NPU has no int64 arithmetic.
        assert all(constant.ndim == 1 for constant in constants if constant.dtype.kind == "i")
        integers = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.INT64}
        assert integers == ({"token", "position", "tokens"} & {value.name for value in graph.input})
        assert all(node.op_type == "Gather" for node in graph.node if integers & set(node.input))


@CASES
def test_layer_norms_are_one_op_each_and_tables_stored_once(
    graphs: dict[tuple[str, bool], Path], decoder: str, host: bool
) -> None:
    folder = graphs[decoder, host]
    dims = read(folder)["dims"]
    encoder, part = onnx.load(folder / "encoder.onnx").graph, onnx.load(folder / "decoder.onnx").graph
    assert Counter(node.op_type for node in encoder.node)["LayerNormalization"] == 2 * dims["n_audio_layer"] + 1
    assert Counter(node.op_type for node in part.node)["LayerNormalization"] == 3 * dims["n_text_layer"] + 1
    tables = [
        list(tensor.dims) for tensor in part.initializer if dims["n_vocab"] in tensor.dims and len(tensor.dims) == 2
    ]
    assert tables == [[dims["n_vocab"], dims["n_text_state"]]]


@CASES
def test_model_json_describes_the_graphs(graphs: dict[tuple[str, bool], Path], decoder: str, host: bool) -> None:
    folder = graphs[decoder, host]
    model = read(folder)
    assert model["family"] == "whisper"
    assert (model["n_frames"], model["n_audio_ctx"], model["max_tokens"]) == (500, 250, 32)
    assert model["dims"]["n_audio_ctx"] == 500
    assert model["harvest"] == ["hidden"]
    assert Recipe(**model["recipe"]) == recipe(decoder=decoder, host_embedding=host)
    for part in model["parts"].values():
        session = onnxruntime.InferenceSession(folder / part["file"])
        for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
            found = [(value.name, value.shape, value.type) for value in values]
            assert [(entry["name"], entry["shape"], types[entry["dtype"]]) for entry in part[kind]] == found


def test_parts_are_those_of_the_contract(graphs: dict[tuple[str, bool], Path]) -> None:
    def shapes(decoder: str, host: bool, kind: str) -> dict[str, list[int]]:
        return {entry["name"]: entry["shape"] for entry in read(graphs[decoder, host])["parts"]["decoder"][kind]}

    audio, vocabulary = [1, 250, 32], 51864
    assert shapes("window", False, "inputs") == {"tokens": [1, 12], "audio": audio}
    assert shapes("window", True, "inputs") == {"embedding": [1, 12, 32], "audio": audio}
    assert shapes("window", False, "outputs") == {"out": [1, 12, vocabulary]}
    assert shapes("static", False, "inputs") == {"tokens": [1, 64], "audio": audio, "last": [1, 1, 64]}
    assert shapes("static", True, "outputs") == {"logits": [1, 1, vocabulary]}
    cache = {f"self_{kind}_{i}": [1, 64, 32] for i in (0, 1) for kind in "kv"}
    cross = {f"cross_{kind}_{i}": shape for i in (0, 1) for kind, shape in (("k", [2, 16, 250]), ("v", [2, 250, 16]))}
    mask = {"mask": [1, 1, 1, 65]}
    assert shapes("cached", False, "inputs") == {"token": [1, 1], "position": [1, 1], **mask, **cache, **cross}
    assert shapes("cached", True, "inputs") == {"embedding": [1, 1, 32], **mask, **cache, **cross}
    rows = {f"new_{kind}_{i}": [1, 1, 32] for i in (0, 1) for kind in "kv"}
    assert shapes("cached", False, "outputs") == {"logits": [1, 1, vocabulary], **rows}
    part = read(graphs["cached", False])["parts"]["cross"]
    assert [entry["name"] for entry in part["outputs"]] == ["cross_k_0", "cross_v_0", "cross_k_1", "cross_v_1"]


def test_host_embedding_tables_are_the_checkpoints(
    graphs: dict[tuple[str, bool], Path], random_checkpoint: Path
) -> None:
    folder, state = graphs["cached", True], load_checkpoint(random_checkpoint).state
    words, places = np.load(folder / "token_embedding.npy"), np.load(folder / "positional_embedding.npy")
    np.testing.assert_array_equal(words, state["decoder.token_embedding.weight"].numpy())
    np.testing.assert_array_equal(places, state["decoder.positional_embedding"].numpy())
    info = json.loads((folder / "embedding_info.json").read_text())
    assert info["token_embedding"] == {"file": "token_embedding.npy", "shape": [51864, 32], "dtype": "float32"}
    assert info["positional_embedding"]["shape"] == [64, 32]
    assert not [*graphs["cached", False].glob("*embedding*")]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"graph_format": "torchscript", "decoder": "static", "host_embedding": True}])
def test_exporting_again_gives_the_same_bytes(random_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Again in this process, from another folder, and in a process with another hash seed."""
    export(random_checkpoint, recipe(**changes), tmp_path / "one")
    export(random_checkpoint, recipe(**changes), tmp_path / "another" / "folder")
    assert digests(tmp_path / "one") == digests(tmp_path / "another" / "folder")
    code = (
        "import pathlib, sys; from models.whisper.export import export; from nightjar.plugins.recipe import Recipe;"
        "export(pathlib.Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2]), pathlib.Path(sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, random_checkpoint, recipe(**changes).model_dump_json(), tmp_path / "process"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert digests(tmp_path / "one") == digests(tmp_path / "process")
    assert (done.stdout, done.stderr) == ("", "")  # the exporters have much to say, none of it to a user


def test_no_file_holds_a_path_of_this_machine(random_checkpoint: Path, tmp_path: Path) -> None:
    for graph_format in ("onnx", "torchscript"):
        export(random_checkpoint, recipe(graph_format=graph_format), tmp_path / graph_format)
    for path in tmp_path.rglob("*.*"):
        content = path.read_bytes()
        assert str(ROOT).encode() not in content
        assert str(tmp_path).encode() not in content


@pytest.mark.parametrize(
    ("window_s", "says"),
    [
        (30, "window 30 s is beyond this model's context of 10 s: pass --window 10"),
        (10.02, "beyond this model's context of 10 s"),
        (5.01, "not a whole number of encoder rows: allowed are multiples of 0.02 s, pass --window 5"),
        (0.001, "pass --window 0.02"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    random_checkpoint: Path, tmp_path: Path, window_s: float, says: str
) -> None:
    with pytest.raises(BadOptions, match=says):
        export(random_checkpoint, recipe(window_s=window_s), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_default_is_clamped_to_the_model(random_checkpoint: Path, tmp_path: Path) -> None:
    done = export(random_checkpoint, Recipe(decoder="static"), tmp_path, clamp=True)
    assert (done.window_s, done.decoder_length) == (10, 64)
    model = read(tmp_path)
    assert (model["n_frames"], model["recipe"]["window_s"], model["recipe"]["decoder_length"]) == (1000, 10, 64)
    assert clamp_recipe(recipe(decoder_length=32), model["dims"]) == recipe(decoder_length=32)


@pytest.mark.parametrize("n_vocab", [51864, 51865, 51866])
def test_the_token_table_is_what_whisper_decode_uses(n_vocab: int) -> None:
    table = token_table(n_vocab)
    model = Whisper(ModelDimensions(80, 8, 8, 1, 1, n_vocab, 8, 8, 1, 1))
    for language in [*table["languages"], "en"][-3:]:
        task = DecodingTask(model, DecodingOptions(language=language, without_timestamps=True))
        blank, suppress = task.logit_filters
        assert table["suppress"] == sorted(suppress.suppress_tokens)
        assert table["suppress_first"] == [*blank.tokenizer.encode(" "), blank.tokenizer.eot]
        assert decode.prompt_tokens({"tokens": table}, language) == list(task.initial_tokens)
        assert table["eot"] == task.tokenizer.eot
        assert table["timestamp_begin"] == task.tokenizer.timestamp_begin
    assert len(table["languages"]) == (0 if n_vocab == 51864 else model.num_languages)
    assert json.loads(json.dumps(table)) == table


def test_text_is_what_whisper_decode_gives() -> None:
    ids = tokens.VOCABULARIES[0].tokenizer.encode(" And so, my fellow Americans. ")
    assert tokens.text(ids, ENGLISH) == "And so, my fellow Americans."
    assert tokens.text([*ids, 50363 + 40], ENGLISH) == "And so, my fellow Americans."
    ids = tokens.VOCABULARIES[1].tokenizer.encode(" 對我做了介紹")
    assert tokens.text(ids, {"tokens": {"languages": {"zh": 50260}}}) == "對我做了介紹"


@pytest.mark.parametrize("graph_format", ["onnx", "torchscript"])
@pytest.mark.parametrize("host", [False, True])
def test_the_window_decoder_is_bounded_and_its_graph_is_the_modules(
    random_checkpoint: Path, tmp_path: Path, graph_format: str, host: bool
) -> None:
    wanted = recipe(decoder="window", graph_format=graph_format, host_embedding=host)
    export(random_checkpoint, wanted, tmp_path)
    model = read(tmp_path)
    open_parts = open_runner if graph_format == "onnx" else torchscript.open_runner
    runner = open_parts(tmp_path, model["parts"])
    noise = np.random.default_rng(3)
    part = build_parts(load_checkpoint(random_checkpoint), wanted)["decoder"]
    given = {
        name: noise.integers(0, 51864, example.shape)
        if example.dtype == torch.int64
        else noise.standard_normal(example.shape, np.float32)
        for name, example in part.inputs.items()
    }
    with torch.no_grad():
        expected = part.module(*map(torch.from_numpy, given.values())).numpy()
    np.testing.assert_allclose(runner.run("decoder", given)["out"], expected, rtol=0, atol=1e-3)
    tables = {path.stem: np.load(path) for path in tmp_path.glob("*_embedding.npy")}
    wave = noise.standard_normal(80_000, np.float32)
    encoded = decode.encode(runner, decode.features(wave, model), model)
    heard = decode.decode(runner, encoded, model, "en", tables or None)
    assert heard["capped"] == (heard["steps"] == len(heard["tokens"]) == 32) or heard["steps"] < 32
    assert len(heard["tokens"]) <= 32
    assert 0 <= agree(runner, encoded, model, heard["tokens"], "en", tables or None) <= len(heard["tokens"]) + 1
    runner.close()


class Scripted:
    """A runner that samples given tokens, and keeps the windows it was shown."""

    def __init__(self, script: list[int], n_vocab: int) -> None:
        self.script, self.n_vocab, self.windows = script, n_vocab, []

    def run(self, part: str, inputs: dict[str, Any], constant: dict[str, Any]) -> dict[str, Any]:
        self.windows.append(inputs["tokens"][0].tolist())
        out = np.zeros((1, 12, self.n_vocab), np.float32)
        out[0, -1, self.script[len(self.windows) - 1]] = 1
        return {"out": out}


def window_model(n_vocab: int) -> dict[str, Any]:
    return {
        "tokens": token_table(n_vocab),
        "recipe": {"decoder": "window", "host_embedding": False},
        "dims": {"n_text_ctx": 448},
        "max_tokens": 224,
    }


def test_the_window_slides_as_in_rknn_model_zoo() -> None:
    prompt, eot = [50258, 50259, 50359, 50363], 50257
    runner = Scripted([*range(1, 12), eot], 51865)
    heard = decode.decode(runner, {"hidden": np.zeros(1)}, window_model(51865))
    assert heard == {"tokens": list(range(1, 12)), "language": "en", "steps": 12, "capped": False}
    assert runner.windows[0] == prompt * 3
    assert runner.windows[1] == [*(prompt * 3)[:11], 1]  # pop_id 11
    assert runner.windows[2] == [*(prompt * 3)[:10], 1, 2]
    assert runner.windows[8] == [*prompt, 1, 2, 3, 4, 5, 6, 7, 8]  # pop_id 4: the first prompt stays
    assert runner.windows[11] == [*prompt, 4, 5, 6, 7, 8, 9, 10, 11]


def test_the_window_of_an_english_only_model_keeps_its_two_prompt_tokens() -> None:
    runner = Scripted([*range(1, 12), 50256], 51864)
    decode.decode(runner, {"hidden": np.zeros(1)}, window_model(51864))
    assert runner.windows[0] == [50257, 50362] * 6
    assert runner.windows[11] == [50257, 50362, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_timestamp_that_the_zoo_would_repeat_for_ever_ends_the_window() -> None:
    runner = Scripted([1, 50364, 50365, 7], 51865)
    heard = decode.decode(runner, {"hidden": np.zeros(1)}, window_model(51865))
    assert heard == {"tokens": [1, 50364], "language": "en", "steps": 3, "capped": True}


def test_a_language_the_model_does_not_have_is_refused() -> None:
    for n_vocab, language in ((51864, "de"), (51865, "yue"), (51865, "xx")):
        with pytest.raises(ValueError, match=f"no language '{language}' in this model: have .*en.*--language"):
            decode.prompt_tokens({"tokens": token_table(n_vocab)}, language)
    assert decode.prompt_tokens({"tokens": token_table(51866)}, "yue")[1] == 50358


def test_runners_refuse_in_one_line(graphs: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    folder = graphs["static", False]
    parts = read(folder)["parts"]
    for open_parts in (open_runner, torchscript.open_runner):
        with pytest.raises(RuntimeError, match="encoder") as absent:
            open_parts(tmp_path, parts)
        for part in parts.values():
            (tmp_path / part["file"]).write_bytes(b"junk")
        with pytest.raises(RuntimeError, match="cannot load") as broken:
            open_parts(tmp_path, parts)
        for part in parts.values():
            (tmp_path / part["file"]).unlink()
        assert "\n" not in f"{absent.value}{broken.value}"
    runner = open_runner(folder, parts, {"threads": 1})
    for part, inputs in (("joiner", {}), ("encoder", {}), ("encoder", {"mel": np.zeros((1, 80, 7), np.float32)})):
        with pytest.raises(RuntimeError, match=part) as refused:
            runner.run(part, inputs)
        assert "\n" not in str(refused.value)
    runner.close()


@pytest.mark.parametrize("decoder", ["window", "cached"])
def test_the_rows_a_shorter_window_keeps_are_the_encoder_s_alone(
    decoder: str, random_checkpoint: Path, tmp_path: Path
) -> None:
    """A prefix begins with the decoder's first position, whatever rows of the encoder's table are kept."""
    files = {}
    for positional in ("first", "last"):
        folder = tmp_path / positional
        export(random_checkpoint, recipe(window_s=4, decoder=decoder, positional=positional), folder)
        files[positional] = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    differing = {name for name in files["first"] if files["first"][name] != files["last"][name]}
    assert differing == {"encoder.onnx"}
