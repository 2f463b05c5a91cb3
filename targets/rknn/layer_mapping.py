"""Map the float graph's nodes and tensors to the toolkit's layers, and write what it shall keep float16.

The toolkit fuses and renames: a MatMul with its bias becomes a Conv called `…/MatMul#2`, the five nodes of a GELU one
`exGelu`, a whole attention `…/MatMul_1_2sdpa`. Its tensor names are no guide (an Add may put out
`/Transpose_output_0_sw-rs`), the names of its layers are: each begins with the name of the last node it stands for.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from nightjar.errors import BadInput
from nightjar.graphs.fusion import fuse

# What the toolkit hangs on a node's name.
ADDED = re.compile(r"(?:#\d+|_2[a-z]+|[-_](?:rs|tp|sw|mm|sdpa|ConvAdd|ConvRelu|bias|exSecondary)|_i\d+)*")
MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "exDataConvert", "Constant"})
SELECTING = MOVING | {"Slice", "Split"}
LINEAR = frozenset({"MatMul", "Gemm", "Conv"})
SCALING = frozenset({"Add", "Sub", "Mul", "Div"})
WHOLE = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
NAMES = "names.json"
INT8_ENTRY = re.compile(r"^    (\S.*):\n        qtype: .*\n        qmethod: .*\n        dtype: int8\n", re.MULTILINE)


class Layer(NamedTuple):
    """A layer of the toolkit's optimised graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Move(NamedTuple):
    """Where data that is moved comes from and goes: outputs of layers that compute; empty for the graph's own."""

    source: str
    readers: list[str]


def layers_from(entries: Iterable[Mapping[str, Any]]) -> list[Layer]:
    """Read what toolchain/compile.py returns."""
    return [Layer(e["name"], e["op"], tuple(e["inputs"]), tuple(e["outputs"])) for e in entries]


def node_name(layer: str, nodes: Iterable[str]) -> str | None:
    """Find the float node a layer's name was made from: the longest that begins it, the rest being the toolkit's."""
    fitting = [name for name in nodes if name and layer.startswith(name) and ADDED.fullmatch(layer, len(name))]
    return max(fitting, key=len, default=None)


def own_layers(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Map float nodes to the layers that are called after them or after what they put out.

    Where a layer's name tells nothing (a GLU, a product's scale) that of its tensor does, moves behind it or not.
    """
    nodes = {node.name: node for node in model.graph.node if node.op_type != "Constant"}
    makers = {out: node for node in nodes.values() for out in node.output}
    found: dict[str, Layer] = {}
    unnamed = []
    for layer in layers:
        name = node_name(layer.name, nodes) if layer.op not in MOVING else None
        if name is not None and nodes[name].op_type not in MOVING:
            found.setdefault(name, layer)
        elif name is None and layer.op not in SELECTING:
            unnamed.append(layer)
    putting_out = {out: layer for layer in layers for out in layer.outputs if layer.op not in MOVING}
    for node in nodes.values():  # what ends a fused layer keeps the name of its tensor
        ends = [putting_out[out] for out in node.output if out in putting_out]
        if ends and node.name not in found and node.op_type not in MOVING:
            found[node.name] = ends[0]
    for layer in unnamed:
        tensor = node_name(layer.outputs[0], makers)
        while tensor is not None and makers[tensor].op_type in MOVING and makers[tensor].input[0] in makers:
            tensor = makers[tensor].input[0]
        if tensor is not None and makers[tensor].op_type not in MOVING:
            found.setdefault(makers[tensor].name, layer)
    return found


def node_layers(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Map each float node to the layer that does its work; nodes that became constants are left out.

    A node without a layer of its own went into the one before (a bias, a scale, what only moves data) or into the one
    behind (a GELU's parts, an attention's product, mask and softmax).
    """
    nodes = {node.name: node for node in model.graph.node if node.op_type != "Constant"}
    found = own_layers(model, layers)
    makers = {out: node.name for node in nodes.values() for out in node.output}
    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for source in node.input:
            readers.setdefault(source, []).append(node.name)

    for layer in layers:  # a product without bias names the residual sum behind it: `<product>#2_add`
        name = node_name(layer.name.removesuffix("_add"), nodes) if layer.op == "Add" else None
        if name is not None and nodes[name].op_type in LINEAR:
            sums = [r for out in nodes[name].output for r in readers.get(out, ()) if nodes[r].op_type == "Add"]
            found.update(dict.fromkeys(sums, layer))

    linear = {name for name, node in nodes.items() if node.op_type in LINEAR}
    for name, node in nodes.items():  # a graph's nodes stand in an order in which inputs come first
        before = [makers[source] for source in node.input if source in makers]
        if name in found or not before:
            continue
        scales = node.op_type in SCALING and len(before) == 1 and before[0] in linear
        if (scales or node.op_type in MOVING) and before[0] in found:
            found[name] = found[before[0]]
            if scales:
                linear.add(name)
    for name, node in reversed(nodes.items()):
        behind = [found[reader] for out in node.output for reader in readers.get(out, ()) if reader in found]
        if name not in found and behind:
            found[name] = behind[0]
    return found


def tensor_names(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, str]:
    """Map each tensor of the float graph that some layer computes to that layer's own output tensor.

    What a group puts out is its layer's, whichever of its nodes that is called after: an `exSwish` after its sigmoid.
    """
    found, own = node_layers(model, layers), own_layers(model, layers)
    names = {
        tensor: found[node.name].outputs[0]
        for node in model.graph.node
        if node.name in found
        for tensor in node.output
        if tensor
    }
    for group in fuse(model):
        ends = [own[node].outputs[0] for node in group.nodes if node in own]
        if ends and group.nodes[-1] not in own:
            names[group.tensor] = ends[-1]
    return names


def masked_attention(layers: Iterable[Layer]) -> list[str]:
    """Name the outputs of attention layers that add a mask: query, key, value and mask."""
    return [layer.outputs[0] for layer in layers if layer.op == "exSDPAttention" and len(layer.inputs) > 3]


def moves(layers: Sequence[Layer]) -> dict[str, Move]:
    """Describe each layer that moves data or part of it, by its outputs: what made them, and what reads them."""
    made_by = {out: layer for layer in layers for out in layer.outputs}
    read_by: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.inputs:
            read_by.setdefault(name, []).append(layer)

    def source(name: str) -> str:
        while (layer := made_by.get(name)) is not None and layer.op in SELECTING:
            name = layer.inputs[0]
        return name if name in made_by else ""

    def readers(name: str) -> set[str]:
        found = set[str]()
        for layer in read_by.get(name, ()):
            own = layer.outputs
            found |= set[str]().union(*map(readers, own)) if layer.op in SELECTING else {own[0]}
        return found if name in read_by else {""}

    return {
        out: Move(source(layer.inputs[0]), sorted(readers(out)))
        for layer in layers
        if layer.op in SELECTING and layer.inputs
        for out in layer.outputs
    }


def boundary(model: onnx.ModelProto, layers: Sequence[Layer]) -> list[str]:
    """Name the tensors next to a graph's inputs and outputs in int8: in float16 they make those float16 too.

    The toolkit has a conversion of its own behind each input and before each output; it asks of an input what reads
    the converted one, and takes no notice of what is said of the conversion itself.
    """
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    converted = [layer for layer in layers if layer.op == "exDataConvert"]
    first = {layer.outputs[0] for layer in converted if layer.inputs[0] in inputs}
    behind = {out for layer in layers if first & {*layer.inputs} for out in layer.outputs}
    return sorted(behind | {layer.inputs[0] for layer in converted if layer.outputs[0] in outputs})


def counting(model: onnx.ModelProto, layers: Sequence[Layer]) -> list[str]:
    """Name what is computed from the inputs of whole numbers alone: int8 would end a count where calibration did."""
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    made = {out for layer in layers for out in layer.outputs}
    found = {name for name, kind in inputs.items() if kind in WHOLE}
    named = list[str]()
    for layer in layers:  # inputs come first
        fed = [name for name in layer.inputs if name in made or name in inputs]
        if fed and found.issuperset(fed):
            found.update(layer.outputs)
            named += layer.outputs
    return named


def write_names(model: onnx.ModelProto, layers: Sequence[Layer], folder: Path, part: str) -> None:
    """Write beside a part's quantization parameters which tensor is which, and which layers there are."""
    content = {
        "tensors": tensor_names(model, layers),
        "nodes": {node: layer.outputs[0] for node, layer in node_layers(model, layers).items()},
        "outputs": [layer.outputs[0] for layer in layers if layer.op not in MOVING],
        "masked_attention": masked_attention(layers),
        "boundary": boundary(model, layers),
        "counting": counting(model, layers),
        "moves": {out: move._asdict() for out, move in moves(layers).items()},
    }
    (folder / f"{part}.{NAMES}").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_names(quantization_cfg: Path) -> dict[str, Any]:
    """Read what `write_names` left beside a part's .quantization.cfg; raises BadInput where there is nothing."""
    path = quantization_cfg.with_name(quantization_cfg.name.removesuffix("quantization.cfg") + NAMES)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadInput(
            f"{path} cannot be read: quantization parameters come with it; run the same command with --refresh build"
        ) from exc
    return found


def precision_file(quantization_cfg: Path, keep: Sequence[str], out: Path) -> Path:
    """Write the toolkit's configuration with the layers of these float tensors in float16; return its path.

    keep: names of tensors of the float ONNX graph, or of the toolkit's own. What moves data between float16 layers, or
    between one and the graph's inputs and outputs, is float16 too: left alone it is int8, and rounds what it moves.
    Raises BadInput with every name that no layer computes.
    """
    names = read_names(quantization_cfg)
    own = {*names["outputs"], *names["boundary"], *names["counting"]}
    chosen = {names["tensors"].get(name, name if name in own else None): name for name in keep}
    unknown = [name for name in keep if name not in names["tensors"] and name not in own]
    if unknown:
        raise BadInput(
            f"no layer of {quantization_cfg.name} computes {', '.join(unknown)}: "
            f"name tensors of the float graph such as {', '.join(list(names['tensors'])[:3])} in the plan"
        )
    # As text: the toolkit refuses a file in which a number was written another way.
    text = quantization_cfg.read_text(encoding="utf-8")
    empty = "custom_quantize_layers: {}\n"
    if not text.startswith(empty):
        raise BadInput(
            f"{quantization_cfg} does not begin with an empty custom_quantize_layers: "
            "it is not as the toolkit wrote it; run the same command with --refresh build"
        )
    roundable = {name.strip('"') for name in INT8_ENTRY.findall(text)}
    kept = roundable & set(chosen)  # what counts in whole numbers is never int8, and refused here
    kept |= {
        out
        for out, move in names["moves"].items()
        if out in roundable and (not move["source"] or move["source"] in kept) and {*kept, ""} & {*move["readers"]}
    }
    lines = "".join(f"    {json.dumps(name)}: float16\n" for name in sorted(kept))
    head = f"custom_quantize_layers:\n{lines}" if lines else empty
    out.write_text(head + text.removeprefix(empty), encoding="utf-8")
    return out
