"""Every container of one model gives the same tensors; what is damaged, or no model, is refused by name."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors.torch import save_file

from models.whisper.checkpoint import load_checkpoint, stock
from models.whisper.tokens import VOCABULARIES, decode_text
from nightjar.errors import BadCheckpoint
from tests.conftest import real_weights

State = dict[str, torch.Tensor]
GGML_DIMS = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)


def content_of(path: Path) -> tuple[dict[str, int], State]:
    content = torch.load(path, weights_only=True)
    return content["dims"], content["model_state_dict"]


def write_ctranslate2(folder: Path, path: Path, int8: bool = False) -> Path:
    """Write a .pt file as CTranslate2's converter would."""
    dims, state = content_of(path)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    variables: dict[str, np.ndarray] = {}

    def put(name: str, array: np.ndarray) -> None:
        if int8 and array.ndim > 1 and name.endswith("weight"):
            rows = array.astype(np.float32).reshape(len(array), -1)
            scale = 127 / np.abs(rows).max(1)
            variables[f"{name}_scale"] = scale.astype(np.float32)
            array = np.rint(rows * scale[:, None]).astype(np.int8).reshape(array.shape)
        variables[name] = array

    def linear(target: str, *names: str) -> None:
        put(f"{target}/weight", np.concatenate([arrays[f"{name}.weight"] for name in names]))
        zeros = np.zeros(dims["n_text_state"], arrays[f"{names[0]}.weight"].dtype)
        put(f"{target}/bias", np.concatenate([arrays.get(f"{name}.bias", zeros) for name in names]))

    def norm(target: str, name: str) -> None:
        put(f"{target}/gamma", arrays[f"{name}.weight"])
        put(f"{target}/beta", arrays[f"{name}.bias"])

    for side, kind, end in (("encoder", "audio", "ln_post"), ("decoder", "text", "ln")):
        put(f"{side}/num_heads", np.array(dims[f"n_{kind}_head"], np.int16))
        put(f"{side}/position_encodings/encodings", arrays[f"{side}.positional_embedding"])
        norm(f"{side}/layer_norm", f"{side}.{end}")
        for i in range(dims[f"n_{kind}_layer"]):
            there, here = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            linear(f"{there}/self_attention/linear_0", *(f"{here}.attn.{n}" for n in ("query", "key", "value")))
            linear(f"{there}/self_attention/linear_1", f"{here}.attn.out")
            norm(f"{there}/self_attention/layer_norm", f"{here}.attn_ln")
            if side == "decoder":
                linear(f"{there}/attention/linear_0", f"{here}.cross_attn.query")
                linear(f"{there}/attention/linear_1", f"{here}.cross_attn.key", f"{here}.cross_attn.value")
                linear(f"{there}/attention/linear_2", f"{here}.cross_attn.out")
                norm(f"{there}/attention/layer_norm", f"{here}.cross_attn_ln")
            linear(f"{there}/ffn/linear_0", f"{here}.mlp.0")
            linear(f"{there}/ffn/linear_1", f"{here}.mlp.2")
            norm(f"{there}/ffn/layer_norm", f"{here}.mlp_ln")
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"encoder.{conv}")
    put("decoder/embeddings/weight", arrays["decoder.token_embedding.weight"])

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    kinds = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}
    out = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        out += [text(name), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        out += [struct.pack("<BI", kinds[str(array.dtype)], array.nbytes), array.tobytes()]
    out += [struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"".join(out))
    (folder / "config.json").write_text(json.dumps({"lang_ids": []}))
    return folder


def write_ggml(file: Path, path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F16) -> Path:
    """Write a .pt file as whisper.cpp's converter would, matrices in one type of numbers."""
    dims, state = content_of(path)
    tokens = [b"a", b"b", b" gazed"]
    out = [struct.pack("<I", 0x67676D6C), struct.pack("<11i", *(dims[name] for name in GGML_DIMS), 1)]
    out += [struct.pack("<2i", 80, 201), bytes(4 * 80 * 201), struct.pack("<i", len(tokens))]
    for token in tokens:
        out += [struct.pack("<i", len(token)), token]
    for name, tensor in state.items():
        array = tensor.numpy()
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            array = array.reshape(-1, 1)
        if array.ndim < 2 or "positional" in name or name.startswith("encoder.conv"):
            stored, data = GGMLQuantizationType.F32, array.astype(np.float32)
        elif kind == GGMLQuantizationType.F16:
            stored, data = kind, array.astype(np.float16)
        else:
            stored, data = kind, quantize(array.astype(np.float32), kind)
        out += [struct.pack("<3i", array.ndim, len(name), stored), struct.pack(f"<{array.ndim}i", *array.shape[::-1])]
        out += [name.encode(), data.tobytes()]
    file.write_bytes(b"".join(out))
    return file


def assert_same(loaded: Path, path: Path) -> None:
    found, expected = load_checkpoint(loaded), load_checkpoint(path)
    assert found.dims == expected.dims
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name


def test_ctranslate2_and_ggml_give_the_tensors_of_the_pt_file(random_checkpoint: Path, tmp_path: Path) -> None:
    for path in (write_ctranslate2(tmp_path / "ct2", random_checkpoint), write_ggml(tmp_path / "g", random_checkpoint)):
        assert_same(path, random_checkpoint)
        assert load_checkpoint(path).weights.dtype == "float16"
        assert load_checkpoint(path).notes == ["it is English-only"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q5_1", "Q4_0"])
def test_quantized_ggml_is_dequantized_and_said_to_be(random_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    loaded = load_checkpoint(write_ggml(tmp_path / "model.bin", random_checkpoint, GGMLQuantizationType[kind]))
    assert kind.lower() in loaded.notes[0]
    assert "dequantized" in loaded.notes[0]
    assert_close(
        loaded.state, random_checkpoint, {"Q8_0": 1 / 127, "Q5_0": 1 / 15, "Q5_1": 1 / 15, "Q4_0": 1 / 7}[kind]
    )


def test_int8_of_ctranslate2_is_dequantized_and_said_to_be(random_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(write_ctranslate2(tmp_path / "ct2", random_checkpoint, int8=True))
    assert "int8" in loaded.notes[0]
    assert "dequantized" in loaded.notes[0]
    assert_close(loaded.state, random_checkpoint, 1 / 127)


def assert_close(state: Mapping[str, torch.Tensor], path: Path, step: float) -> None:
    """Each matrix is within one step of its row's largest value, and not all of it is exact."""
    expected = load_checkpoint(path).state
    for name in ("decoder.token_embedding.weight", "encoder.blocks.1.mlp.0.weight", "decoder.blocks.0.attn.key.weight"):
        error = (state[name] - expected[name]).abs().amax(1)
        assert bool((error <= expected[name].abs().amax(1) * step).all()), name
        assert float(error.max()) > 0


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999999])
@pytest.mark.parametrize("container", ["ctranslate2", "ggml"])
def test_a_cut_file_is_refused(random_checkpoint: Path, tmp_path: Path, container: str, share: float) -> None:
    if container == "ggml":
        path = file = write_ggml(tmp_path / "model.bin", random_checkpoint)
    else:
        path = write_ctranslate2(tmp_path / "ct2", random_checkpoint)
        file = path / "model.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[: 4 + int((len(whole) - 4) * share)])
    with pytest.raises(BadCheckpoint, match=r"model\.bin.*--checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_another_ctranslate2_model_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_ctranslate2(tmp_path / "ct2", random_checkpoint)
    content = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(content.replace(b"WhisperSpec", b"Wav2VecSpec"))
    with pytest.raises(BadCheckpoint, match="'Wav2VecSpec', allowed is WhisperSpec"):
        load_checkpoint(folder)


WRAPPED: dict[str, Callable[[dict[str, int], State], Any]] = {
    "module.": lambda dims, state: {"dims": dims, "model_state_dict": prefixed(state, "module.")},
    "_orig_mod.": lambda dims, state: {"dims": dims, "model_state_dict": prefixed(state, "_orig_mod.")},
    "model.": lambda dims, state: {"dims": dims, "state_dict": prefixed(state, "model."), "epoch": 3},
    "model._orig_mod.": lambda dims, state: {"dims": dims, "state_dict": prefixed(state, "model._orig_mod.")},
    "module.model.": lambda dims, state: {"dims": dims, **prefixed(state, "module.model.")},
}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", WRAPPED)
def test_prefixes_of_training_loops_are_removed_and_named(random_checkpoint: Path, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "tuned.pt"
    torch.save(WRAPPED[prefix](*content_of(random_checkpoint)), path)
    assert_same(path, random_checkpoint)
    assert repr(prefix) in load_checkpoint(path).notes[0]


def test_two_models_in_one_file_are_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    dims, state = content_of(random_checkpoint)
    path = tmp_path / "distilled.pt"
    torch.save({"dims": dims, "state_dict": prefixed(state, "student.") | prefixed(state, "teacher.")}, path)
    with pytest.raises(BadCheckpoint, match=r"2 models, 'student\.' and 'teacher\.'"):
        load_checkpoint(path)


def test_absent_dims_are_derived_for_openais_widths_and_asked_for_else(random_checkpoint: Path, tmp_path: Path) -> None:
    _, state = content_of(random_checkpoint)
    path = tmp_path / "bare.pt"
    torch.save(state, path)
    with pytest.raises(BadCheckpoint, match=r"width 32 is none of OpenAI's .*n_audio_head"):
        load_checkpoint(path)
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(80, 100, 384, 6, 1, 51864, 16, 384, 6, 2)
    torch.save({name: torch.zeros_like(tensor) for name, tensor in Whisper(dims).state_dict().items()}, path)
    loaded = load_checkpoint(path)
    assert loaded.dims == vars(dims)
    assert "6 heads" in loaded.notes[0]


def test_an_adapter_alone_is_refused_with_the_merge(tmp_path: Path) -> None:
    lora = {"base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 8)}
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file(lora, folder / "adapter_model.safetensors")
    torch.save(lora, tmp_path / "adapter.pt")
    for path in (folder, tmp_path / "adapter.pt"):
        with pytest.raises(BadCheckpoint, match=r"adapter .*merge_and_unload.*--checkpoint OUT"):
            load_checkpoint(path)


def with_row(path: Path, out: Path, rows: int = 1) -> State:
    """Add rows to the embedding, as a fine-tune with added tokens has them, and write a .pt file."""
    dims, state = content_of(path)
    table = state["decoder.token_embedding.weight"]
    state["decoder.token_embedding.weight"] = torch.cat([table, table.float().mean(0, keepdim=True).repeat(rows, 1)])
    torch.save({"dims": {**dims, "n_vocab": dims["n_vocab"] + rows}, "model_state_dict": state}, out)
    return state


def write_tokenizer(folder: Path, multilingual: bool, added: dict[str, int]) -> None:
    special = VOCABULARIES[multilingual].tokenizer.special_tokens
    tokens = [{"id": token, "content": content, "special": True} for content, token in special.items()]
    tokens += [{"id": token, "content": content, "special": False} for content, token in added.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))


def test_an_english_fine_tune_with_an_added_token_stays_english(random_checkpoint: Path, tmp_path: Path) -> None:
    """It has as many tokens as a multilingual Whisper, and was taken for one."""
    with_row(random_checkpoint, tmp_path / "tuned.pt")
    folder = write_ctranslate2(tmp_path / "ct2", tmp_path / "tuned.pt")
    write_tokenizer(folder, multilingual=False, added={" Nightjar": 51864})
    loaded = load_checkpoint(folder)
    assert loaded.dims["n_vocab"] == 51865
    assert loaded.notes == ["it is English-only, with 1 added token"]
    model = stock(loaded)
    assert not model.is_multilingual
    tokens = VOCABULARIES[0].tokenizer.encode(" the")
    assert decode_text(loaded.vocabulary, [*tokens, 51864, *tokens]) == "the Nightjar the"


def test_a_multilingual_fine_tune_with_an_added_token_keeps_its_99_languages(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    with_row(random_checkpoint, tmp_path / "tuned.pt", rows=2)
    folder = write_ctranslate2(tmp_path / "ct2", tmp_path / "tuned.pt")
    write_tokenizer(folder, multilingual=True, added={"grüezi": 51865})
    vocabulary = load_checkpoint(folder).vocabulary
    assert (vocabulary.multilingual, vocabulary.n_languages) == (True, 99)
    assert vocabulary.added == {51865: "grüezi"}


@pytest.mark.parametrize("rows", [-1, 4])
def test_a_size_that_is_none_of_whispers_is_refused(random_checkpoint: Path, tmp_path: Path, rows: int) -> None:
    dims, state = content_of(random_checkpoint)
    table = state["decoder.token_embedding.weight"]
    state["decoder.token_embedding.weight"] = torch.cat([table, table])[: dims["n_vocab"] + rows]
    dims["n_vocab"] += rows
    torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "odd.pt")
    with pytest.raises(BadCheckpoint, match=f"vocabulary of {dims['n_vocab']} tokens is not Whisper's: .*51866"):
        _ = load_checkpoint(tmp_path / "odd.pt").vocabulary


def test_a_tokenizer_that_is_not_whispers_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_ctranslate2(tmp_path / "ct2", random_checkpoint)
    tokens = [{"id": 3 + i, "content": c, "special": True} for i, c in enumerate(("<|startoftranscript|>", "<|en|>"))]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    with pytest.raises(BadCheckpoint, match=r"tokenizer is not Whisper's.*startoftranscript.* = 3"):
        _ = load_checkpoint(folder).vocabulary


@pytest.mark.parametrize("content", ["", "[]", '{"added_tokens": 3}', '{"added_tokens": [{"id": 1}]}'])
def test_a_damaged_tokenizer_is_refused(random_checkpoint: Path, tmp_path: Path, content: str) -> None:
    folder = write_ctranslate2(tmp_path / "ct2", random_checkpoint)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=r"cannot read .*tokenizer\.json.*--checkpoint"):
        load_checkpoint(folder)


@pytest.mark.slow
def test_real_tiny_en_is_the_same_in_ctranslate2() -> None:
    assert_same(real_weights("tiny.en").with_suffix(""), real_weights("tiny.en"))


@pytest.mark.slow
def test_real_weights_tell_which_whisper_they_are(tmp_path: Path) -> None:
    """Without a tokenizer, a size of 51,865 does not say it; with another model's tokenizer, the weights contradict."""
    with_row(real_weights("tiny.en"), tmp_path / "tuned.pt")
    assert load_checkpoint(tmp_path / "tuned.pt").notes == ["it is English-only, with 1 added token"]
    assert load_checkpoint(real_weights("base")).notes == ["it is multilingual (99 languages)"]
    folder = tmp_path / "base"
    shutil.copytree(real_weights("base").with_suffix(""), folder)
    write_tokenizer(folder, multilingual=False, added={})
    with pytest.raises(
        BadCheckpoint, match=r"tokenizer \(or config\.json\) is English-only.*weights are those of the other kind"
    ):
        _ = load_checkpoint(folder).vocabulary
