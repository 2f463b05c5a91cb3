"""Write a checkpoint's graphs, one each for encoder, cross-attention and decoder, and model.json."""

import contextlib
import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.whisper import FAMILY, trace
from models.whisper.checkpoint import Checkpoint, load_checkpoint, read_dims
from models.whisper.surgery import load
from models.whisper.tokens import token_table
from models.whisper.trace import PartModule, make_parts
from nightjar.errors import BadOptions
from nightjar.graphs.onnx_file import settle
from nightjar.graphs.parameter_map import Location, ParameterMap, locate_parameters, write_parameter_map
from nightjar.plugins.recipe import Recipe
from nightjar.store.fingerprint import closure

OPSET = 17  # the first where LayerNormalization is one op
FRAMES_PER_S = 100  # of the mel, two per encoder row
SUFFIX = {"onnx": "onnx", "torchscript": "pt"}


def export(checkpoint: Path, recipe: Recipe, out: Path, clamp: bool = False) -> Recipe:
    """Write the graphs of docs/files.md into `out`; equal inputs give equal bytes.

    clamp: cut a window beyond the model's context to it instead of refusing it (a recipe's default is clamped, a
    requested window is not); `decoder_length` is always clamped. Returns the recipe that was exported. Raises
    BadCheckpoint and BadOptions.
    """
    model = load_checkpoint(checkpoint)
    clamped = clamp_recipe(recipe, model.dims)
    n_frames = count_frames(clamped if clamp else recipe, model.dims)
    recipe = clamped
    tokens = token_table(model.dims["n_vocab"], model.vocabulary)
    is_onnx = recipe.graph_format == "onnx"
    out.mkdir(parents=True, exist_ok=True)
    described, places = {}, {}
    for name, part in build_parts(model, recipe).items():
        file = f"{name}.{SUFFIX[recipe.graph_format]}"
        with _quiet():
            if is_onnx:
                places[name] = _write_onnx(part, out / file)
            else:
                _write_torchscript(part, out / file)
        described[name] = {"file": file, **describe(part)}
    if is_onnx:
        code = dict(closure([trace.__name__]).files)
        write_parameter_map(out, ParameterMap(module=trace.__name__, code=code, parts=places))
    if recipe.host_embedding:
        _write_tables(model, out)
    content = {
        "family": FAMILY,
        "checkpoint": {"container": model.weights.container, "dtype": model.weights.dtype, "notes": model.notes},
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


def clamp_recipe(recipe: Recipe, dims: Mapping[str, int]) -> Recipe:
    """Cut a recipe's window and decoder length to what a model of these dimensions has."""
    return recipe.model_copy(
        update={
            "window_s": min(recipe.window_s, 2 * dims["n_audio_ctx"] / FRAMES_PER_S),
            "decoder_length": min(recipe.decoder_length, dims["n_text_ctx"]),
        }
    )


def count_frames(recipe: Recipe, dims: Mapping[str, int]) -> int:
    """Count the mel frames of a recipe's window; raises BadOptions where it does not fit."""
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
            f"window {recipe.window_s:g} s is not a whole number of encoder rows: allowed are "
            f"multiples of 0.02 s, pass --window {whole:g}"
        )
    return count


def build_parts(model: Checkpoint, recipe: Recipe) -> dict[str, PartModule]:
    """Build the parts of a clamped recipe with a checkpoint's weights, in the order they run."""
    parts = make_parts(model.dims, recipe.model_dump(), count_frames(recipe, model.dims) // 2)
    for part in parts.values():
        # A shorter window may have the last rows of the encoder's table; a prefix always has the decoder's first.
        load(part.module, model.state, part.scope, recipe.positional if part.scope == "encoder" else "first")
    return parts


def part_bytes(checkpoint: Path, recipe: Recipe, clamp: bool) -> dict[str, int]:
    """Return the bytes of each part's weights in float32, from the dimensions; raises what `export` raises for them."""
    dims = read_dims(checkpoint)
    clamped = clamp_recipe(recipe, dims)
    n_frames = count_frames(clamped if clamp else recipe, dims)
    with torch.device("meta"):
        parts = make_parts(dims, clamped.model_dump(), n_frames // 2)
    tensors = {name: (*part.module.parameters(), *part.module.buffers()) for name, part in parts.items()}
    return {name: 4 * sum(tensor.numel() for tensor in each) for name, each in tensors.items()}


def describe(part: PartModule) -> dict[str, Any]:
    """List name, shape and dtype of every input and output; nothing is computed for it."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        results = part.module(*part.inputs.values())
    outputs = dict(zip(part.outputs, (results,) if isinstance(results, Tensor) else results, strict=True))
    return {
        kind: [
            {"name": name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in tensors.items()
        ]
        for kind, tensors in (("inputs", part.inputs), ("outputs", outputs))
    }


def _write_onnx(part: PartModule, file: Path) -> dict[str, Location]:
    """Return where the parameters are: a vendor's environment rebuilds the modules to trace them with its own torch."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # from 2 GiB on, torch writes a file for each weight
        written = Path(folder) / file.name
        # The dynamo exporter takes ten times as long and writes its own names and metadata into the graph.
        torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            str(written),
            input_names=list(part.inputs),
            output_names=part.outputs,
            opset_version=OPSET,
            dynamo=False,
        )
        graph = settle(written, file)
    return locate_parameters(graph, {key: tensor.numpy() for key, tensor in part.module.state_dict().items()})


def _write_torchscript(part: PartModule, file: Path) -> None:
    # A class that was traced before gets another name; clearing the registry gives every trace the same names.
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
    """Rewrite a TorchScript archive without the data that differs between runs and machines.

    That is the debug tables (source paths), the id over all content, and the number in `___torch_mangle_<n>` that torch
    increments as long as a process lives. The names of inputs and outputs, which TorchScript does not store, become the
    extra file `names.json`.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    numbers = {int(n) for name in entries for n in re.findall(r"torch_mangle_(\d+)", name)}
    places = {b"%d" % n: b"%03d" % i for i, n in enumerate(sorted(numbers))}

    def renumber(content: bytes) -> bytes:
        return re.sub(rb"(?<=torch_mangle_)\d+", lambda m: places[m[0]], content)

    contents = {
        renumber(name.encode()).decode(): renumber(content) if "/data/" not in name else content
        for name, content in entries.items()
        if not name.endswith((".debug_pkl", "serialization_id"))
    }
    contents[f"{file.stem}/extra/names.json"] = json.dumps(names).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(contents):
            archive.writestr(zipfile.ZipInfo(name), contents[name])  # dated 1980


def _write_tables(model: Checkpoint, out: Path) -> None:
    info = {}
    for key in ("token_embedding.weight", "positional_embedding"):
        name, table = key.removesuffix(".weight"), model.state[f"decoder.{key}"].numpy()
        np.save(out / f"{name}.npy", table)
        info[name] = {"file": f"{name}.npy", "shape": list(table.shape), "dtype": str(table.dtype)}
    (out / "embedding_info.json").write_text(json.dumps(info, indent=1) + "\n")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notices off the console; what fails still raises."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
