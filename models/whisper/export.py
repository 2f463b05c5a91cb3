"""Write a checkpoint's graphs: encoder, cross-attention and decoder apart, and model.json."""

import contextlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.whisper import FAMILY
from models.whisper.checkpoint import Checkpoint, load_checkpoint
from models.whisper.surgery import NORMS, WINDOW, CachedDecoder, Cross, Encoder, PrefixDecoder, load
from models.whisper.tokens import token_table
from nightjar.errors import BadOptions
from nightjar.recipe import Recipe

OPSET = 17  # the first where LayerNormalization is one op
FRAMES_PER_S = 100  # of the mel, two per encoder row
SUFFIX = {"onnx": "onnx", "torchscript": "pt"}


@dataclass(frozen=True)
class Part:
    """One graph to write: a module, an example of each input by name, the outputs' names."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]

    def describe(self) -> dict[str, Any]:
        """List name, shape and dtype of every input and output."""
        with torch.no_grad():
            results = self.module(*self.inputs.values())
        if isinstance(results, Tensor):
            results = (results,)
        outputs = dict(zip(self.outputs, results, strict=True))
        return {"inputs": _described(self.inputs), "outputs": _described(outputs)}


def export(checkpoint: Path, recipe: Recipe, out: Path, clamp: bool = False) -> Recipe:
    """Write the graphs of docs/files.md into `out`; the same inputs give the same bytes.

    clamp: cut a window beyond the model's context to it, instead of refusing it (a recipe's default is clamped, a
    window asked for is not); `decoder_length` always is. Returns the recipe that was exported. Raises BadCheckpoint
    and BadOptions.
    """
    model = load_checkpoint(checkpoint)
    if not clamp:
        frames(recipe, model.dims)
    recipe = clamped(recipe, model.dims)
    n_frames = frames(recipe, model.dims)
    tokens = token_table(model.dims["n_vocab"])
    out.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, part in cut(model, recipe).items():
        file = f"{name}.{SUFFIX[recipe.graph_format]}"
        write = _write_onnx if recipe.graph_format == "onnx" else _write_torchscript
        with _quiet():
            write(part, out / file)
        described[name] = {"file": file, **part.describe()}
    if recipe.host_embedding:
        _write_tables(model, out)
    content = {
        "family": FAMILY,
        "dims": model.dims,
        "n_frames": n_frames,
        "n_audio_ctx": n_frames // 2,
        "recipe": recipe.model_dump(),
        "host_position_add": recipe.host_embedding,
        "tokens": tokens,
        "max_tokens": model.dims["n_text_ctx"] // 2,
        "harvest": ["hidden"],
        "parts": described,
    }
    (out / "model.json").write_text(json.dumps(content, indent=1) + "\n")
    return recipe


def clamped(recipe: Recipe, dims: Mapping[str, int]) -> Recipe:
    """Cut a recipe's window and decoder length to what a model of these dimensions has."""
    return recipe.model_copy(
        update={
            "window_s": min(recipe.window_s, 2 * dims["n_audio_ctx"] / FRAMES_PER_S),
            "decoder_length": min(recipe.decoder_length, dims["n_text_ctx"]),
        }
    )


def frames(recipe: Recipe, dims: Mapping[str, int]) -> int:
    """Count the mel frames of a recipe's window, or raise BadOptions where it does not fit."""
    most_s = 2 * dims["n_audio_ctx"] / FRAMES_PER_S
    if recipe.window_s > most_s:
        raise BadOptions(
            f"window {recipe.window_s:g} s is beyond this model's context of {most_s:g} s: "
            f"pass --window {most_s:g} or less"
        )
    count = round(recipe.window_s * FRAMES_PER_S)
    if abs(count - recipe.window_s * FRAMES_PER_S) > 1e-6 or count < 2 or count % 2:
        whole = max(2, count // 2 * 2) / FRAMES_PER_S
        raise BadOptions(
            f"window {recipe.window_s:g} s is no whole number of encoder rows: allowed are "
            f"multiples of 0.02 s, pass --window {whole:g}"
        )
    return count


def cut(model: Checkpoint, recipe: Recipe) -> dict[str, Part]:
    """Cut a checkpoint into the parts of a clamped recipe, in the order they run."""
    dims, n_audio = model.dims, frames(recipe, model.dims) // 2
    encoder = load(
        Encoder(dims, n_audio, recipe.conv2d, NORMS[recipe.layer_norm]), model.state, "encoder", recipe.positional
    )
    mel = torch.zeros(1, dims["n_mels"], *([1] if recipe.conv2d else []), 2 * n_audio)
    result = {"encoder": Part(encoder, {"mel": mel}, ["hidden"])}
    audio = torch.zeros(1, n_audio, dims["n_audio_state"])
    if recipe.decoder == "cached":
        names = _layers(dims, "cross_k", "cross_v")
        cross = load(Cross(dims), model.state, "decoder")
        result["cross"] = Part(cross, {"hidden": audio}, names)
        result["decoder"] = _cached(model, recipe, audio)
    else:
        result["decoder"] = _prefix(model, recipe, audio)
    return result


def _prefix(model: Checkpoint, recipe: Recipe, audio: Tensor) -> Part:
    """Cut the decoder that sees a whole prefix: `window` or `static`."""
    window = recipe.decoder == "window"
    length = min(WINDOW, model.dims["n_text_ctx"]) if window else recipe.decoder_length
    slices = 1 if window else recipe.logits_slices
    module = PrefixDecoder(
        model.dims,
        length,
        recipe.host_embedding,
        norm=NORMS[recipe.layer_norm],
        slices=slices,
        masked=recipe.mask_value,
    )
    if recipe.host_embedding:
        inputs = {"embedding": torch.zeros(1, length, model.dims["n_text_state"])}
    else:
        inputs = {"tokens": torch.zeros(1, length, dtype=torch.int64)}
    inputs["audio"] = audio
    if not window and recipe.logits_rows == "last":
        inputs["last"] = functional.one_hot(torch.tensor([[length - 1]]), length).float()
    outputs = [f"logits_{i}" for i in range(slices)] if slices > 1 else ["out" if window else "logits"]
    return Part(load(module, model.state, "decoder"), inputs, outputs)


def _cached(model: Checkpoint, recipe: Recipe, audio: Tensor) -> Part:
    """Cut the decoder that sees one token and a static KV cache."""
    dims, length = model.dims, recipe.decoder_length
    module = CachedDecoder(dims, length, recipe.host_embedding, norm=NORMS[recipe.layer_norm])
    if recipe.host_embedding:
        inputs = {"embedding": torch.zeros(1, 1, dims["n_text_state"])}
    else:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        inputs = {"token": zero, "position": zero.clone()}
    inputs["mask"] = torch.zeros(1, 1, 1, length + 1)
    cache = torch.zeros(1, length, dims["n_text_state"])
    inputs |= {name: cache.clone() for name in _layers(dims, "self_k", "self_v")}
    n_head, n_audio = dims["n_text_head"], audio.shape[1]
    d_head = dims["n_text_state"] // n_head
    across = {"cross_k": (n_head, d_head, n_audio), "cross_v": (n_head, n_audio, d_head)}
    inputs |= {name: torch.zeros(across[name.rpartition("_")[0]]) for name in _layers(dims, *across)}
    outputs = ["logits", *_layers(dims, "new_k", "new_v")]
    return Part(load(module, model.state, "decoder"), inputs, outputs)


def _layers(dims: Mapping[str, int], *names: str) -> list[str]:
    """Number names per decoder layer: k_0, v_0, k_1, v_1, ..."""
    return [f"{name}_{i}" for i in range(dims["n_text_layer"]) for name in names]


def _described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """List name, shape and dtype of tensors."""
    return [
        {"name": name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
        for name, t in tensors.items()
    ]


def _write_onnx(part: Part, file: Path) -> None:
    """Write one part as ONNX with the tracing exporter.

    The dynamo exporter takes ten times as long and leaves its own names and metadata in the graph.
    """
    torch.onnx.export(
        part.module,
        tuple(part.inputs.values()),
        str(file),
        input_names=list(part.inputs),
        output_names=part.outputs,
        opset_version=OPSET,
        dynamo=False,
    )


def _write_torchscript(part: Part, file: Path) -> None:
    """Write one part as TorchScript, traced."""
    # A class traced before gets another name; forgetting them gives every trace the same names.
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()
    with torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            part.module, tuple(part.inputs.values()), check_trace=False, _store_inputs=False
        )
    traced.save(str(file))
    _canonical(file, {"inputs": list(part.inputs), "outputs": part.outputs})


def _canonical(file: Path, names: dict[str, list[str]]) -> None:
    """Rewrite a TorchScript archive without what tells one run or machine from another.

    Those are the debug tables (source paths), the id over all content, and the number that torch counts up in
    `___torch_mangle_<n>` for the whole life of a process. The names of inputs and outputs, which TorchScript does not
    keep, go in as the extra file `names.json`.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    numbers = {int(n) for name in entries for n in re.findall(r"torch_mangle_(\d+)", name)}
    places = {b"%d" % n: b"%03d" % i for i, n in enumerate(sorted(numbers))}

    def renumber(content: bytes) -> bytes:
        return re.sub(rb"(?<=torch_mangle_)\d+", lambda m: places[m[0]], content)

    kept = {
        renumber(name.encode()).decode(): renumber(content) if "/data/" not in name else content
        for name, content in entries.items()
        if not name.endswith((".debug_pkl", "serialization_id"))
    }
    kept[f"{file.stem}/extra/names.json"] = json.dumps(names).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(kept):
            archive.writestr(zipfile.ZipInfo(name), kept[name])  # dated 1980


def _write_tables(model: Checkpoint, out: Path) -> None:
    """Write the two embedding tables that the host looks up, and what they are."""
    tables = {
        name: model.state[f"decoder.{key}"].numpy()
        for name, key in {
            "token_embedding": "token_embedding.weight",
            "positional_embedding": "positional_embedding",
        }.items()
    }
    for name, table in tables.items():
        np.save(out / f"{name}.npy", table)
    info = {
        name: {"file": f"{name}.npy", "shape": list(table.shape), "dtype": str(table.dtype)}
        for name, table in tables.items()
    }
    (out / "embedding_info.json").write_text(json.dumps(info, indent=1) + "\n")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notices off the console; what fails still raises."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
