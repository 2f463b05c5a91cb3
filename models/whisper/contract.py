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
    inputs: set[str]
    outputs: set[str]
    recipe: dict[str, Any]
    rename: dict[str, str]


DECODERS = (  # protocol, inputs with token ids, other inputs, outputs
    ("window", {"tokens"}, {"audio"}, {"out"}),
    ("static", {"tokens"}, {"audio", "last"}, {"logits"}),
    ("static", {"tokens"}, {"audio"}, {"logits"}),
    ("cached", {"token", "position"}, {"mask", "self_k", "self_v", "cross_k", "cross_v"}, {"logits", "new_k", "new_v"}),
)
SIGNATURES = (
    Signature("encoder", {"mel"}, {"hidden"}, {}, {}),
    # The zoo's export has the last rows of the positional table.
    Signature("encoder", {"x"}, {"out"}, {"positional": "last"}, {"x": "mel", "out": "hidden"}),
    Signature("cross", {"hidden"}, {"cross_k", "cross_v"}, {}, {}),
    *(
        Signature("decoder", first | others, outputs, {"decoder": protocol, "host_embedding": host}, {})
        for protocol, ids, others, outputs in DECODERS
        for first, host in ((ids, False), ({"embedding"}, True))
    ),
)
LENGTHS = {"last": "(1, 1, length)", "tokens": "(1, length)", "embedding": "(1, length, d)"}  # of a `static` decoder


def recognise(graphs: Mapping[Path, FileInterface]) -> PrebuiltFiles:
    """Return which file is which part, and the recipe of their shapes.

    Raises BadInput with the file and the tensor that is not understood, and for a part too many or too few.
    """
    parts: dict[str, PrebuiltPart] = {}
    recipe: dict[str, Any] = {}
    for file, graph in graphs.items():
        part, _, _, fixed, rename = _match(file, graph)
        if part in parts:
            raise BadInput(f"{parts[part].file} and {file} are both the {part}: give one file per part")
        parts[part] = PrebuiltPart(file=file, graph=graph, rename=rename)
        recipe |= fixed
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
    recipe["window_s"] = _shape(parts["encoder"], mel, expected)[-1] / FRAMES_PER_S
    decoder = parts["decoder"]
    tensors = {tensor.name: tensor for tensor in decoder.graph.inputs}
    if protocol == "cached":
        recipe["decoder_length"] = _shape(decoder, tensors["mask"], "(1, 1, 1, cache rows + 1)")[-1] - 1
    elif protocol == "static":
        name = next(name for name in LENGTHS if name in tensors)
        recipe["decoder_length"] = _shape(decoder, tensors[name], LENGTHS[name])[1 if name == "embedding" else -1]
        recipe["logits_rows"] = "last" if "last" in tensors else "all"
        recipe["logits_slices"] = len(decoder.graph.outputs)
    return PrebuiltFiles(parts=parts, recipe=recipe)


def _shape(part: PrebuiltPart, tensor: TensorSpec, expected: str) -> tuple[int, ...]:
    """Return the shape of a tensor; BadInput where its rank is not that of `expected`."""
    if len(tensor.shape) != expected.count(",") + 1:
        raise BadInput(
            f"{part.file}: input {tensor.label} is not understood, expected {expected}: export with this shape"
        )
    return tensor.shape


def _match(file: Path, graph: FileInterface) -> Signature:
    """Find the part with a graph's inputs and outputs; raises BadInput with the difference to the nearest one."""
    inputs, outputs = _without_layers(graph.inputs), _without_layers(graph.outputs)
    nearest = min(SIGNATURES, key=lambda s: len(s.inputs ^ inputs.keys()) + len(s.outputs ^ outputs.keys()))
    for kind, found, wanted in (("input", inputs, nearest.inputs), ("output", outputs, nearest.outputs)):
        for tensor in (tensor for name, tensor in found.items() if name not in wanted):
            raise BadInput(f"{file}: {kind} {tensor.label} is not understood; {UNDERSTOOD}")
    if lacking := [*sorted(nearest.inputs - inputs.keys()), *sorted(nearest.outputs - outputs.keys())]:
        raise BadInput(f"{file}: as {nearest.part} it lacks {', '.join(lacking)}; {UNDERSTOOD}")
    return nearest


def _without_layers(tensors: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    """Return one tensor by each name without its layer number."""
    return {re.sub(r"^((?:self|cross|new)_[kv]|logits)_\d+$", r"\1", tensor.name): tensor for tensor in tensors}
