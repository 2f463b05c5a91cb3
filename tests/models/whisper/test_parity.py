"""Every cut of the model decodes token for token what openai-whisper decodes with the same weights and window."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from whisper.model import Whisper

from models.whisper import decode
from models.whisper.checkpoint import load_checkpoint
from models.whisper.export import export
from nightjar.plugins.recipe import Recipe
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech
from targets.onnx.runner import open_runner
from targets.torchscript import runner as torchscript
from tests.conftest import SPEECH, need, real_weights
from tests.models.whisper.reference import agree, stock_in_window

pytestmark = pytest.mark.slow

NANO = Path(__file__).resolve().parents[3] / "data" / "whisper-nano"
OPTIONS = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
NEAR = 1e-3  # two logits this close may swap places between two orders of summation
Wave = np.ndarray


HEARD: dict[tuple[Whisper, str], tuple[list[int], torch.Tensor]] = {}


def stock_tokens(model: Whisper, name: str, wave: Wave) -> tuple[list[int], torch.Tensor]:
    """Decode a clip with openai-whisper itself, once; return its tokens and its encoder's rows."""
    if (model, name) not in HEARD:
        padded = whisper.pad_or_trim(torch.from_numpy(wave), model.dims.n_audio_ctx * 320)
        result = whisper.decode(model, whisper.log_mel_spectrogram(padded, model.dims.n_mels), OPTIONS)
        HEARD[model, name] = result.tokens, result.audio_features
    return HEARD[model, name]


def check(model: Whisper, folder: Path, clips: dict[str, Wave]) -> list[str]:
    """Hold the graphs in `folder` against openai-whisper; return the places where two logits were too close to call."""
    described = json.loads((folder / "model.json").read_text())
    opened = torchscript.open_runner if described["recipe"]["graph_format"] == "torchscript" else open_runner
    runner = opened(folder, described["parts"], {"threads": 1})
    tables = {path.stem: np.load(path) for path in folder.glob("*_embedding.npy")} or None
    prompt = decode.prompt_tokens(described)
    room = described["recipe"]["decoder_length"] - len(prompt) + 1
    close_calls = []
    for name, wave in clips.items():
        expected, rows = stock_tokens(model, name, wave)
        encoded = decode.encode(runner, decode.features(wave, described), described)
        heard = decode.decode(runner, encoded, described, "en", tables)
        assert heard["capped"] == (len(expected) >= min(room, described["max_tokens"])), name
        if heard["tokens"] == expected[:room]:
            certain = len(heard["tokens"]) + (not heard["capped"])
            assert agree(runner, encoded, described, expected, "en", tables) >= certain, name
            continue
        pairs = zip([*heard["tokens"], -1], [*expected, -1], strict=False)
        at = next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
        with torch.no_grad():
            logits = model.logits(torch.tensor([[*prompt, *expected[:at]]]), rows[None])[0, -1]
        logits[described["tokens"]["suppress"] + described["tokens"]["suppress_first"] * (at == 0)] = -torch.inf
        best, second = logits.topk(2).values.tolist()
        assert best - second < NEAR, f"{name}: token {at} differs, stock is {best - second:.4f} sure"
        close_calls.append(f"{name} at token {at}: {best - second:.1e} apart")
    runner.close()
    return close_calls


@pytest.fixture(scope="module")
def small(random_checkpoint: Path) -> tuple[Path, dict[str, Wave]]:
    """The shipped checkpoint and clips of it; noise of both kinds where it is not made yet."""
    if not (NANO / "whisper-nano.pt").is_file():
        noise = np.random.default_rng(11)
        waves = {f"noise {s} s": noise.standard_normal(int(s * 16000), np.float32) * s / 9 for s in (1, 4.9, 0.2)}
        return random_checkpoint, waves
    clips = sorted(load_speech(NANO / "evaluation.jsonl"), key=lambda clip: (clip.duration_s, clip.id))
    chosen = [clip for clip in clips if clip.duration_s <= 5]
    return NANO / "whisper-nano.pt", read([chosen[0], chosen[len(chosen) // 2], chosen[-1]])


def read(clips: list[Any]) -> dict[str, Wave]:
    return {clip.id: load_audio(clip.audio).astype(np.float32) / 32768 for clip in clips}


@pytest.fixture(scope="module")
def stock_of() -> Callable[[Path, float, str], Whisper]:
    """openai-whisper with a checkpoint, a window and its positional rows; each built once."""
    built: dict[tuple[Path, float, str], Whisper] = {}

    def get(checkpoint: Path, window_s: float, positional: str) -> Whisper:
        key = (checkpoint, window_s, positional)
        if key not in built:
            built[key] = stock_in_window(load_checkpoint(checkpoint), round(window_s * 50), positional)
        return built[key]

    return get


SMALL = [*product((10, 5), ("first", "last"), ("cached", "static"), (False, True), ("onnx", "torchscript"))]


@pytest.mark.parametrize(("window_s", "positional", "decoder", "host", "graph_format"), SMALL)
def test_every_cut_of_a_small_model(
    small: tuple[Path, dict[str, Wave]],
    stock_of: Callable[[Path, float, str], Whisper],
    tmp_path: Path,
    window_s: float,
    positional: Any,
    decoder: Any,
    host: bool,
    graph_format: Any,
) -> None:
    checkpoint, clips = small
    recipe = Recipe(
        window_s=window_s, positional=positional, decoder=decoder, host_embedding=host, graph_format=graph_format
    )
    export(checkpoint, recipe, tmp_path)
    print(*check(stock_of(checkpoint, window_s, positional), tmp_path, clips))


# What NPUs want besides: each alone, in both formats, and all together with what goes with it on a Hailo-8L.
SURGERY: list[dict[str, Any]] = [
    {"conv2d": True},
    {"layer_norm": "primitives"},
    {"decoder": "static", "logits_rows": "all"},
    {"decoder": "static", "logits_slices": 4},
    {"decoder": "static", "mask_value": -100.0},
    {"decoder": "static", "logits_rows": "all", "logits_slices": 7, "decoder_length": 32, "mask_value": -100.0},
]
TOGETHER: dict[str, Any] = {"conv2d": True, "layer_norm": "primitives", "logits_rows": "all", "logits_slices": 4}
COMBINED = [
    *({**fields, "graph_format": graph_format} for fields in SURGERY for graph_format in ("onnx", "torchscript")),
    *(
        {**TOGETHER, "decoder": decoder, "host_embedding": host, "graph_format": "onnx", "mask_value": -100.0}
        for decoder, host in product(("cached", "static"), (False, True))
    ),
]


@pytest.mark.parametrize("fields", COMBINED, ids=lambda fields: "-".join(map(str, fields.values())))
def test_every_surgery_on_a_small_model(
    small: tuple[Path, dict[str, Wave]],
    stock_of: Callable[[Path, float, str], Whisper],
    tmp_path: Path,
    fields: dict[str, Any],
) -> None:
    checkpoint, clips = small
    export(checkpoint, Recipe(window_s=5, **fields), tmp_path)
    print(*check(stock_of(checkpoint, 5, "first"), tmp_path, clips))


# Each window, each end of the positional table, both protocols, formats and embeddings; both lengths; each surgery.
REAL: list[dict[str, Any]] = [
    {"window_s": 30, "positional": "first", "decoder": "cached", "graph_format": "onnx"},
    {"window_s": 20, "positional": "last", "decoder": "static", "graph_format": "onnx", "host_embedding": True},
    {"window_s": 20, "positional": "first", "decoder": "cached", "graph_format": "torchscript"},
    {"window_s": 10, "positional": "first", "decoder": "static", "graph_format": "torchscript"},
    {"window_s": 10, "positional": "last", "decoder": "cached", "graph_format": "onnx", "host_embedding": True},
    {"window_s": 5, "positional": "last", "decoder": "cached", "graph_format": "torchscript", "host_embedding": True},
    {"window_s": 5, "positional": "last", "decoder": "static", "graph_format": "onnx", "decoder_length": 448},
    {"window_s": 30, "decoder": "cached", "graph_format": "onnx", "conv2d": True, "layer_norm": "primitives"},
    {
        **{"window_s": 10, "decoder": "static", "graph_format": "onnx", "host_embedding": True, "mask_value": -100.0},
        **TOGETHER,
    },
]


@pytest.mark.parametrize("fields", REAL, ids=lambda fields: "-".join(map(str, fields.values())))
def test_real_weights_on_real_speech(
    stock_of: Callable[[Path, float, str], Whisper], tmp_path: Path, fields: dict[str, Any]
) -> None:
    need("shared", SPEECH.is_dir(), "real speech: NIGHTJAR_DATA")
    weights = real_weights("tiny.en")
    recipe = Recipe(**{"decoder_length": 64 if fields["decoder"] == "static" else 448, **fields})
    clips = [clip for clip in load_speech(SPEECH / "evaluation.jsonl") if clip.duration_s <= recipe.window_s]
    clips.sort(key=lambda clip: (clip.duration_s, clip.id))
    few = [clips[0], clips[-1]] if recipe.decoder_length == 64 else [clips[0], clips[len(clips) // 2], clips[-1]]
    if fields.get("decoder_length"):
        few = clips[1:2]  # the shortest one loops in stock too: 224 steps over 448 rows take minutes
    export(weights, recipe, tmp_path)
    model = stock_of(weights, recipe.window_s, recipe.positional)
    print(*check(model, tmp_path, read(few)))
