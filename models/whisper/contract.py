"""Tell Whisper's parts by their inputs and outputs, in this project's words (docs/files.md) or in rknn_model_zoo's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nightjar.errors import BadInput
from nightjar.graphs.prebuilt import FileInterface, PrebuiltFiles, PrebuiltPart
from nightjar.graphs.tensor_spec import TensorSpec

FRAMES_PER_S = 100  # of the mel
UNDERSTOOD = (
    "understood are the parts of docs/files.md (mel → hidden; hidden → cross_k_0 …; tokens, audio → out; tokens, "
    "audio, last → logits, or logits_0 …, or without last; token, position, mask, self_k_0 …, cross_k_0 … → logits, "
    "new_k_0 …; embedding instead of token ids) and those of rknn_model_zoo (x → out; tokens, audio → out)"
)


class Signature(NamedTuple):
    """Name a part by its inputs and outputs, numbers of layers cut off."""

    part: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    recipe: dict[str, Any]
    rename: dict[str, str]


def _decoder(inputs: str, outputs: str, decoder: str, host_embedding: bool = False) -> Signature:
    recipe = {"decoder": decoder, "host_embedding": host_embedding}
    return Signature("decoder", frozenset(inputs.split()), frozenset(outputs.split()), recipe, {})


CACHE = "mask self_k self_v cross_k cross_v"
SIGNATURES = (
    Signature("encoder", frozenset({"mel"}), frozenset({"hidden"}), {}, {}),
    # Its export keeps the last rows of the positional table.
    Signature("encoder", frozenset({"x"}), frozenset({"out"}), {"positional": "last"}, {"x": "mel", "out": "hidden"}),
    Signature("cross", frozenset({"hidden"}), frozenset({"cross_k", "cross_v"}), {}, {}),
    _decoder("tokens audio", "out", "window"),
    _decoder("embedding audio", "out", "window", host_embedding=True),
    _decoder("tokens audio last", "logits", "static"),
    _decoder("embedding audio last", "logits", "static", host_embedding=True),
    _decoder("tokens audio", "logits", "static"),
    _decoder("embedding audio", "logits", "static", host_embedding=True),
    _decoder(f"token position {CACHE}", "logits new_k new_v", "cached"),
    _decoder(f"embedding {CACHE}", "logits new_k new_v", "cached", host_embedding=True),
)


def recognise(graphs: Mapping[Path, FileInterface]) -> PrebuiltFiles:
    """Say which file is which part, and which recipe their shapes are of.

    Raises BadInput with the file and the tensor that is not understood, and for a part too many or too few.
    """
    parts: dict[str, PrebuiltPart] = {}
    recipe: dict[str, Any] = {}
    for file, graph in graphs.items():
        signature = _signature(file, graph)
        if signature.part in parts:
            raise BadInput(
                f"{parts[signature.part].file} and {file} are both the {signature.part}: give one file per part"
            )
        parts[signature.part] = PrebuiltPart(file=file, graph=graph, rename=signature.rename)
        recipe |= signature.recipe
    protocol = recipe.get("decoder")
    wanted = {"encoder", "decoder"} | ({"cross"} if protocol == "cached" else set())
    if protocol and parts.keys() != wanted:
        missing, surplus = sorted(wanted - parts.keys()), sorted(parts.keys() - wanted)
        what = (
            f"no {' and no '.join(missing)} is among the files" if missing else f"{parts[surplus[0]].file} is one more"
        )
        raise BadInput(f"{what}: decoder protocol {protocol} takes {', '.join(sorted(wanted))}; give these files")
    if not protocol:
        raise BadInput(f"no decoder is among {', '.join(map(str, graphs))}: give encoder and decoder together")
    mel = parts["encoder"].graph.inputs[0]
    recipe["conv2d"] = len(mel.shape) == 4
    expected = "(1, n_mels, 1, n_frames)" if recipe["conv2d"] else "(1, n_mels, n_frames)"
    recipe["window_s"] = _length(parts["encoder"], mel, expected) / FRAMES_PER_S
    tensors = {tensor.name: tensor for tensor in parts["decoder"].graph.inputs}
    if protocol == "cached":
        recipe["decoder_length"] = _length(parts["decoder"], tensors["mask"], "(1, 1, 1, cache rows + 1)") - 1
    elif protocol == "static":
        recipe |= _static(parts["decoder"], tensors)
    return PrebuiltFiles(parts=parts, recipe=recipe)


def _static(part: PrebuiltPart, tensors: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Read how a `static` decoder gives its logits: which rows, in how many slices."""
    slices = len(part.graph.outputs)
    if "last" in tensors:
        length, rows = _length(part, tensors["last"], "(1, 1, length)"), "last"
    elif "tokens" in tensors:
        length, rows = _length(part, tensors["tokens"], "(1, length)"), "all"
    else:
        embedding = tensors["embedding"]
        _length(part, embedding, "(1, length, d)")
        length, rows = embedding.shape[1], "all"
    return {"decoder_length": length, "logits_rows": rows, "logits_slices": slices}


def _length(part: PrebuiltPart, tensor: TensorSpec, expected: str) -> int:
    """Read the last dimension of a tensor whose rank is that of `expected`."""
    if len(tensor.shape) != expected.count(",") + 1:
        raise BadInput(
            f"{part.file}: input {tensor.label} is not understood, expected {expected}: export with this shape"
        )
    return tensor.shape[-1]


def _signature(file: Path, graph: FileInterface) -> Signature:
    """Find the part whose inputs and outputs a graph has; raises BadInput with what keeps it from the nearest one."""
    inputs, outputs = _kinds(graph.inputs), _kinds(graph.outputs)
    for signature in SIGNATURES:
        if signature.inputs == set(inputs) and signature.outputs == set(outputs):
            return signature
    nearest = max(SIGNATURES, key=lambda s: len(s.inputs & inputs.keys()) + len(s.outputs & outputs.keys()))
    for kind, found, wanted in (("input", inputs, nearest.inputs), ("output", outputs, nearest.outputs)):
        foreign = [tensor for name, tensor in found.items() if name not in wanted]
        if foreign:
            raise BadInput(f"{file}: {kind} {foreign[0].label} is not understood; {UNDERSTOOD}")
    lacking = [*sorted(nearest.inputs - inputs.keys()), *sorted(nearest.outputs - outputs.keys())]
    raise BadInput(f"{file}: as {nearest.part} it lacks {', '.join(lacking)}; {UNDERSTOOD}")


def _kinds(tensors: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    """Give one tensor by each name, numbers of layers cut off."""
    return {re.sub(r"^((?:self|cross|new)_[kv]|logits)_\d+$", r"\1", tensor.name): tensor for tensor in tensors}
