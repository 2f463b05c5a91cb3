"""Map the float graph's nodes and tensors to the toolkit's layers, and write which layers stay float16.

The toolkit fuses and renames: a MatMul with its bias becomes a Conv called `…/MatMul#2`, the five nodes of a GELU one
`exGelu`, a whole attention `…/MatMul_1_2sdpa`. Its tensor names do not help (the output of an Add may be
`/Transpose_output_0_sw-rs`); a layer's name begins with the name of the last node that it replaces.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from nightjar.errors import BadInput
from nightjar.files import read_json
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_graph import Graph

# What the toolkit appends to a node's name.
SUFFIX = re.compile(r"(?:#\d+|_2[a-z]+|[-_](?:rs|tp|sw|mm|sdpa|ConvAdd|ConvRelu|bias|exSecondary)|_i\d+)*")
MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "exDataConvert", "Constant"})
SELECTING = MOVING | {"Slice", "Split"}
LINEAR = frozenset({"MatMul", "Gemm", "Conv"})
SCALING = frozenset({"Add", "Sub", "Mul", "Div"})
INT8_ENTRY = re.compile(r"^    (\S.*):\n        qtype: .*\n        qmethod: .*\n        dtype: int8\n", re.MULTILINE)


class Layer(NamedTuple):
    """A layer of the toolkit's optimised graph."""

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]


def node_name(layer: str, nodes: Iterable[str]) -> str | None:
    """Return the float node whose name begins a layer's name, the longest if there are several."""
    fitting = [name for name in nodes if name and layer.startswith(name) and SUFFIX.fullmatch(layer, len(name))]
    return max(fitting, key=len, default=None)


def named_layers(graph: Graph, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Map float nodes to the layers that have their name or that of their output.

    A layer without such a name (a GLU, a product's scale) is found by its tensor's, with or without moves behind it.
    """
    nodes = {node.name: node for node in graph.nodes if node.op_type != "Constant"}
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
    for out, node in makers.items():  # the last tensor of a fused layer keeps its name
        if out in putting_out and node.op_type not in MOVING:
            found.setdefault(node.name, putting_out[out])
    for layer in unnamed:
        tensor = node_name(layer.outputs[0], makers)
        while tensor is not None and makers[tensor].op_type in MOVING and makers[tensor].input[0] in makers:
            tensor = makers[tensor].input[0]
        if tensor is not None and makers[tensor].op_type not in MOVING:
            found.setdefault(makers[tensor].name, layer)
    return found


def node_layers(graph: Graph, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Map each float node to the layer that computes it; nodes that became constants are left out.

    A node without a layer was fused into the one before it (a bias, a scale, a move) or behind it (parts of a GELU, an
    attention's product, mask and softmax).
    """
    nodes = {node.name: node for node in graph.nodes if node.op_type != "Constant"}
    found = named_layers(graph, layers)

    for layer in layers:  # a product without bias names the residual sum behind it: `<product>#2_add`
        name = node_name(layer.name.removesuffix("_add"), nodes) if layer.op == "Add" else None
        if name is not None and nodes[name].op_type in LINEAR:
            sums = (node for node in graph.readers.get(nodes[name].output[0], ()) if node.op_type == "Add")
            found.update({node.name: layer for node in sums})

    linear = {name for name, node in nodes.items() if node.op_type in LINEAR}
    for name, node in nodes.items():  # a graph's nodes stand in an order in which inputs come first
        before = [graph.producers[source].name for source in graph.activations(node) if source in graph.producers]
        if name in found or not before:
            continue
        scales = node.op_type in SCALING and len(before) == 1 and before[0] in linear
        if (scales or node.op_type in MOVING) and before[0] in found:
            found[name] = found[before[0]]
            if scales:
                linear.add(name)
    for name, node in reversed(nodes.items()):
        readers = (reader.name for out in node.output for reader in graph.readers.get(out, ()))
        if behind := next((reader for reader in readers if reader in found), None):
            found.setdefault(name, found[behind])
    return found


def data_moves(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """Map each output of a layer that moves data or part of it to its `source` and `readers`.

    Both are outputs of computing layers, empty for the graph's inputs and outputs.
    """
    producers = {out: layer for layer in layers for out in layer.outputs}
    read_by: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.inputs:
            read_by.setdefault(name, []).append(layer)

    def source(name: str) -> str:
        while (layer := producers.get(name)) is not None and layer.op in SELECTING:
            name = layer.inputs[0]
        return name if name in producers else ""

    def readers(name: str) -> set[str]:
        found = set[str]()
        for layer in read_by.get(name, ()):
            own = layer.outputs
            found |= set[str]().union(*map(readers, own)) if layer.op in SELECTING else {own[0]}
        return found if name in read_by else {""}

    return {
        out: {"source": source(layer.inputs[0]), "readers": sorted(readers(out))}
        for layer in layers
        if layer.op in SELECTING and layer.inputs
        for out in layer.outputs
    }


def boundary_tensors(graph: Graph, layers: Sequence[Layer]) -> list[str]:
    """Name the tensors next to a graph's inputs and outputs: in float16 they make those float16 too.

    The toolkit adds a conversion behind each input and before each output. The precision of an input follows the layers
    that read the converted tensor; a setting for the conversion itself has no effect.
    """
    converted = [layer for layer in layers if layer.op == "exDataConvert"]
    first = {layer.outputs[0] for layer in converted if layer.inputs[0] in graph.inputs}
    behind = {out for layer in layers if first & {*layer.inputs} for out in layer.outputs}
    return sorted(behind | {layer.inputs[0] for layer in converted if layer.outputs[0] in graph.outputs})


def integer_outputs(graph: Graph, layers: Sequence[Layer]) -> list[str]:
    """Name outputs computed from integer inputs alone: int8 would saturate a counter at its calibration range."""
    made = {out for layer in layers for out in layer.outputs}
    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    found = {name for name in graph.inputs if graph.values[name].type.tensor_type.elem_type in integers}
    for layer in layers:  # inputs come first
        fed = [name for name in layer.inputs if name in made or name in graph.inputs]
        if fed and found.issuperset(fed):
            found.update(layer.outputs)
    return [out for layer in layers for out in layer.outputs if out in found]


def layer_names(graph: Graph, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the content of PART.names.json: the layers' own output tensors by tensor and node of the float graph.

    A group's tensor is its layer's output, whichever node the layer is named after: `exSwish` after its sigmoid.
    """
    own = {node: layer.outputs[0] for node, layer in named_layers(graph, layers).items()}
    nodes = {node: layer.outputs[0] for node, layer in node_layers(graph, layers).items()}
    tensors = {tensor: nodes[node.name] for tensor, node in graph.producers.items() if tensor and node.name in nodes}
    for group in fuse(graph.model):
        ends = [own[node] for node in group.nodes if node in own]
        if ends and group.nodes[-1] not in own:
            tensors[group.tensor] = ends[-1]
    attention = [layer for layer in layers if layer.op == "exSDPAttention"]
    return {
        "tensors": tensors,
        "nodes": nodes,
        "outputs": [layer.outputs[0] for layer in layers if layer.op not in MOVING],
        "masked_attention": [each.outputs[0] for each in attention if len(each.inputs) > 3],  # query, key, value, mask
        "boundary": boundary_tensors(graph, layers),
        "counting": integer_outputs(graph, layers),
        "moves": data_moves(layers),
    }


def read_names(quantization_cfg: Path) -> dict[str, Any]:
    """Read PART.names.json beside PART.quantization.cfg; raises BadInput where it cannot be read."""
    path = quantization_cfg.with_name(quantization_cfg.name.replace("quantization.cfg", "names.json"))
    try:
        return dict(read_json(path))
    except (OSError, ValueError) as exc:
        raise BadInput(
            f"{path} cannot be read: quantization parameters come with it; run the same command with --refresh build"
        ) from exc


def write_float16_layers(quantization_cfg: Path, float16: Sequence[str], out: Path) -> None:
    """Write the toolkit's configuration with the layers of these tensors in float16.

    float16: tensors of the float ONNX graph, or of the toolkit's own. A layer that moves data between float16 layers,
    or between one and the graph's inputs and outputs, becomes float16 too: in int8 it would round the data. Raises
    BadInput with every name that no layer computes.
    """
    names = read_names(quantization_cfg)
    own = {*names["outputs"], *names["boundary"], *names["counting"]}
    if unknown := [name for name in float16 if name not in names["tensors"] and name not in own]:
        raise BadInput(
            f"no layer of {quantization_cfg.name} computes {', '.join(unknown)}: "
            f"name tensors of the float graph such as {', '.join(list(names['tensors'])[:3])} in the plan"
        )
    # Edited as text: the toolkit refuses a file whose numbers are formatted differently.
    text = quantization_cfg.read_text(encoding="utf-8")
    empty = "custom_quantize_layers: {}\n"
    if not text.startswith(empty):
        raise BadInput(
            f"{quantization_cfg} does not begin with an empty custom_quantize_layers: "
            "it is not the toolkit's own file; run the same command with --refresh build"
        )
    roundable = {name.strip('"') for name in INT8_ENTRY.findall(text)}
    chosen = roundable & {names["tensors"].get(name, name) for name in float16}  # the toolkit refuses integer tensors
    chosen |= {
        out
        for out, move in names["moves"].items()
        if out in roundable and (not move["source"] or move["source"] in chosen) and {*chosen, ""} & {*move["readers"]}
    }
    lines = "".join(f"    {json.dumps(name)}: float16\n" for name in sorted(chosen))
    head = f"custom_quantize_layers:\n{lines}" if lines else empty
    out.write_text(head + text.removeprefix(empty), encoding="utf-8")
