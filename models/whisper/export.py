"""Write a checkpoint's graphs: encoder, cross-attention and decoder apart, and model.json."""

import contextlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from models.whisper import FAMILY, trace
from models.whisper.checkpoint import Checkpoint, load_checkpoint
from models.whisper.surgery import load
from models.whisper.tokens import token_table
from models.whisper.trace import Part, shape
from nightjar.errors import BadOptions
from nightjar.graphs.parameter_map import ParameterMap, locate_parameters, write_parameter_map
from nightjar.plugins.recipe import Recipe
from nightjar.store.fingerprint import closure

OPSET = 17  # the first where LayerNormalization is one op
FRAMES_PER_S = 100  # of the mel, two per encoder row
SUFFIX = {"onnx": "onnx", "torchscript": "pt"}


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
    parts = cut(model, recipe)
    for name, part in parts.items():
        file = f"{name}.{SUFFIX[recipe.graph_format]}"
        write = _write_onnx if recipe.graph_format == "onnx" else _write_torchscript
        with _quiet():
            write(part, out / file)
        described[name] = {"file": file, **describe(part)}
    if recipe.graph_format == "onnx":
        _write_places(parts, out)
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
    parts = shape(model.dims, recipe.model_dump(), frames(recipe, model.dims) // 2)
    for part in parts.values():
        # A shorter window keeps other rows of the encoder's table; a prefix begins where the decoder's does.
        load(part.module, model.state, part.scope, recipe.positional if part.scope == "encoder" else "first")
    return parts


def describe(part: Part) -> dict[str, Any]:
    """List name, shape and dtype of every input and output."""
    with torch.no_grad():
        results = part.module(*part.inputs.values())
    if isinstance(results, Tensor):
        results = (results,)
    outputs = dict(zip(part.outputs, results, strict=True))
    return {"inputs": _described(part.inputs), "outputs": _described(outputs)}


def _described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """List name, shape and dtype of tensors."""
    return [
        {"name": name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
        for name, t in tensors.items()
    ]


def _write_places(parts: Mapping[str, Part], out: Path) -> None:
    """Write parameters.json: which initializer holds which parameter, and which code makes modules of them again.

    A converter that reads TorchScript traces those modules with the torch of its own environment.
    """
    places = {
        name: locate_parameters(
            onnx.load(out / f"{name}.onnx"), {n: t.numpy() for n, t in part.module.state_dict().items()}
        )
        for name, part in parts.items()
    }
    code = {path: sha256 for path, sha256 in closure([trace.__name__]).files.items()}
    write_parameter_map(out, ParameterMap(module=trace.__name__, code=code, parts=places))


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
