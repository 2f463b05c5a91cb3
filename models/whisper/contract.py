"""Recognise Whisper's parts by inputs and outputs, in this project's names (docs/files.md) or rknn_model_zoo's."""

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
    """A part's inputs and outputs, without layer numbers, and the fields of the recipe that they fix."""

    part: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    recipe: dict[str, Any]
    rename: dict[str, str]


def _signature(part: str, inputs: str, outputs: str, rename: dict[str, str] | None = None, **recipe: Any) -> Signature:
    return Signature(part, frozenset(inputs.split()), frozenset(outputs.split()), recipe, rename or {})


def _decoders(inputs: str, outputs: str, decoder: str) -> list[Signature]:
    """Return a decoder's signatures with token ids, the first inputs before `|`, and with host embedding instead."""
    ids, _, others = inputs.partition(" | ")
    return [
        _signature("decoder", f"{ids} {others}", outputs, decoder=decoder, host_embedding=False),
        _signature("decoder", f"embedding {others}", outputs, decoder=decoder, host_embedding=True),
    ]


SIGNATURES = (
    _signature("encoder", "mel", "hidden"),
    # The zoo's export has the last rows of the positional table.
    _signature("encoder", "x", "out", {"x": "mel", "out": "hidden"}, positional="last"),
    _signature("cross", "hidden", "cross_k cross_v"),
    *_decoders("tokens | audio", "out", "window"),
    *_decoders("tokens | audio last", "logits", "static"),
    *_decoders("tokens | audio", "logits", "static"),
    *_decoders("token position | mask self_k self_v cross_k cross_v", "logits new_k new_v", "cached"),
)


def recognise(graphs: Mapping[Path, FileInterface]) -> PrebuiltFiles:
    """Return which file is which part, and the recipe of their shapes.

    Raises BadInput with the file and the tensor that is not understood, and for a part too many or too few.
    """
    parts: dict[str, PrebuiltPart] = {}
    recipe: dict[str, Any] = {}
    for file, graph in graphs.items():
        signature = _match(file, graph)
        if signature.part in parts:
            raise BadInput(
                f"{parts[signature.part].file} and {file} are both the {signature.part}: give one file per part"
            )
        parts[signature.part] = PrebuiltPart(file=file, graph=graph, rename=signature.rename)
        recipe |= signature.recipe
    protocol = recipe.get("decoder")
    if not protocol:
        raise BadInput(f"no decoder is among {', '.join(map(str, graphs))}: give encoder and decoder together")
    wanted = {"encoder", "decoder"} | ({"cross"} if protocol == "cached" else set())
    if parts.keys() != wanted:
        missing, surplus = sorted(wanted - parts.keys()), sorted(parts.keys() - wanted)
        what = f"no {' and no '.join(missing)} is among the files" if missing else f"{parts[surplus[0]].file} is extra"
        raise BadInput(f"{what}: decoder protocol {protocol} takes {', '.join(sorted(wanted))}; give these files")
    mel = parts["encoder"].graph.inputs[0]
    recipe["conv2d"] = len(mel.shape) == 4
    expected = "(1, n_mels, 1, n_frames)" if recipe["conv2d"] else "(1, n_mels, n_frames)"
    recipe["window_s"] = _last_dim(parts["encoder"], mel, expected) / FRAMES_PER_S
    tensors = {tensor.name: tensor for tensor in parts["decoder"].graph.inputs}
    if protocol == "cached":
        recipe["decoder_length"] = _last_dim(parts["decoder"], tensors["mask"], "(1, 1, 1, cache rows + 1)") - 1
    elif protocol == "static":
        recipe |= _static(parts["decoder"], tensors)
    return PrebuiltFiles(parts=parts, recipe=recipe)


def _static(part: PrebuiltPart, tensors: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Return the length of a `static` decoder, and the rows and slices of its logits."""
    rows = "last" if "last" in tensors else "all"
    if "last" in tensors:
        length = _last_dim(part, tensors["last"], "(1, 1, length)")
    elif "tokens" in tensors:
        length = _last_dim(part, tensors["tokens"], "(1, length)")
    else:
        _last_dim(part, tensors["embedding"], "(1, length, d)")
        length = tensors["embedding"].shape[1]
    return {"decoder_length": length, "logits_rows": rows, "logits_slices": len(part.graph.outputs)}


def _last_dim(part: PrebuiltPart, tensor: TensorSpec, expected: str) -> int:
    """Return the last dimension of a tensor; BadInput where its rank is not that of `expected`."""
    if len(tensor.shape) != expected.count(",") + 1:
        raise BadInput(
            f"{part.file}: input {tensor.label} is not understood, expected {expected}: export with this shape"
        )
    return tensor.shape[-1]


def _match(file: Path, graph: FileInterface) -> Signature:
    """Find the part with a graph's inputs and outputs; raises BadInput with the difference to the nearest one."""
    inputs, outputs = _without_layers(graph.inputs), _without_layers(graph.outputs)
    for signature in SIGNATURES:
        if signature.inputs == set(inputs) and signature.outputs == set(outputs):
            return signature
    nearest = max(SIGNATURES, key=lambda s: len(s.inputs & inputs.keys()) + len(s.outputs & outputs.keys()))
    for kind, found, wanted in (("input", inputs, nearest.inputs), ("output", outputs, nearest.outputs)):
        for tensor in (tensor for name, tensor in found.items() if name not in wanted):
            raise BadInput(f"{file}: {kind} {tensor.label} is not understood; {UNDERSTOOD}")
    lacking = [*sorted(nearest.inputs - inputs.keys()), *sorted(nearest.outputs - outputs.keys())]
    raise BadInput(f"{file}: as {nearest.part} it lacks {', '.join(lacking)}; {UNDERSTOOD}")


def _without_layers(tensors: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    """Return one tensor by each name without its layer number."""
    return {re.sub(r"^((?:self|cross|new)_[kv]|logits)_\d+$", r"\1", tensor.name): tensor for tensor in tensors}
