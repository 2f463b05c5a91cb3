"""Whisper's parts as torch modules, empty or filled with numpy arrays; torch and numpy only, of any version.

A vendor's converter reads TorchScript of its own torch: its environment rebuilds these modules and traces them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.whisper.surgery import NORMS, WINDOW, CachedDecoder, Cross, Encoder, PrefixDecoder

BRANCH = ".outlier"  # ends the names of a branch's parameters (nightjar/quantization/graph_rewrites.py)


@dataclass(frozen=True)
class PartModule:
    """One part: its module, an example of each input by name, the outputs' names, and its parameters' scope."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    scope: str


def rebuild(model: Mapping[str, Any], part: str, weights: Mapping[str, Any]) -> PartModule:
    """Build one part of model.json from its parameters, float32 arrays by name."""
    result = make_parts(model["dims"], model["recipe"], model["n_audio_ctx"])[part]
    _resize(result.module, weights)
    result.module.load_state_dict({_module_name(name): torch.tensor(array) for name, array in weights.items()})
    result.module.eval().requires_grad_(False)
    return result


def make_parts(dims: Mapping[str, int], recipe: Mapping[str, Any], n_audio: int) -> dict[str, PartModule]:
    """Make the parts of a clamped recipe, without weights, in the order they run; n_audio: rows of the encoder."""
    flat = [1] if recipe["conv2d"] else []
    mel = torch.zeros(1, dims["n_mels"], *flat, 2 * n_audio)
    encoder = Encoder(dims, n_audio, recipe["conv2d"], NORMS[recipe["layer_norm"]])
    result = {"encoder": PartModule(encoder, {"mel": mel}, ["hidden"], "encoder")}
    audio = torch.zeros(1, n_audio, dims["n_audio_state"])
    if recipe["decoder"] == "cached":
        names = _layers(dims, "cross_k", "cross_v")
        result["cross"] = PartModule(Cross(dims), {"hidden": audio}, names, "decoder")
        result["decoder"] = _cached(dims, recipe, audio)
    else:
        result["decoder"] = _prefix(dims, recipe, audio)
    return result


def _prefix(dims: Mapping[str, int], recipe: Mapping[str, Any], audio: Tensor) -> PartModule:
    window = recipe["decoder"] == "window"
    length = min(WINDOW, dims["n_text_ctx"]) if window else recipe["decoder_length"]
    slices = 1 if window else recipe["logits_slices"]
    norm = NORMS[recipe["layer_norm"]]
    module = PrefixDecoder(dims, length, recipe["host_embedding"], norm, slices, recipe["mask_value"])
    if recipe["host_embedding"]:
        inputs = {"embedding": torch.zeros(1, length, dims["n_text_state"])}
    else:
        inputs = {"tokens": torch.zeros(1, length, dtype=torch.int64)}
    inputs["audio"] = audio
    if not window and recipe["logits_rows"] == "last":
        inputs["last"] = functional.one_hot(torch.tensor([[length - 1]]), length).float()
    outputs = [f"logits_{i}" for i in range(slices)] if slices > 1 else ["out" if window else "logits"]
    return PartModule(module, inputs, outputs, "decoder")


def _cached(dims: Mapping[str, int], recipe: Mapping[str, Any], audio: Tensor) -> PartModule:
    length = recipe["decoder_length"]
    module = CachedDecoder(dims, length, recipe["host_embedding"], NORMS[recipe["layer_norm"]])
    if recipe["host_embedding"]:
        inputs = {"embedding": torch.zeros(1, 1, dims["n_text_state"])}
    else:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        inputs = {"token": zero, "position": zero.clone()}
    inputs["mask"] = torch.zeros(1, 1, 1, length + 1)
    cache = torch.zeros(1, length, dims["n_text_state"])
    inputs.update({name: cache.clone() for name in _layers(dims, "self_k", "self_v")})
    n_head, n_audio = dims["n_text_head"], audio.shape[1]
    d_head = dims["n_text_state"] // n_head
    across = {"cross_k": (n_head, d_head, n_audio), "cross_v": (n_head, n_audio, d_head)}
    inputs.update({name: torch.zeros(across[name.rpartition("_")[0]]) for name in _layers(dims, *across)})
    outputs = ["logits", *_layers(dims, "new_k", "new_v")]
    return PartModule(module, inputs, outputs, "decoder")


def _layers(dims: Mapping[str, int], *names: str) -> list[str]:
    """Number names per decoder layer: k_0, v_0, k_1, v_1, ..."""
    return [f"{name}_{i}" for i in range(dims["n_text_layer"]) for name in names]


def _resize(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Give each feed-forward that a rewrite has split its remaining neurons, and a branch with the others."""
    for name in weights:
        path, found, _ = name.partition(f".mlp.0.weight{BRANCH}")
        if not found:
            continue
        block: Any = module.get_submodule(path)
        for place, suffix in (("mlp", ""), ("outlier", BRANCH)):
            wide, narrow = (weights[f"{path}.mlp.{i}.weight{suffix}"] for i in (0, 2))
            layers = nn.Linear(wide.shape[1], wide.shape[0]), nn.GELU(), nn.Linear(narrow.shape[1], narrow.shape[0])
            setattr(block, place, nn.Sequential(*layers))


def _module_name(name: str) -> str:
    """Return the name of a parameter in the module: `blocks.3.mlp.0.weight.outlier` is the branch's."""
    return name.removesuffix(BRANCH).replace(".mlp.", ".outlier.") if name.endswith(BRANCH) else name
