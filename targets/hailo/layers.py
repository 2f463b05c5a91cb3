"""The DFC's layers and the groups of the ONNX graph: which is which, by the nodes that the DFC says a layer is of.

The layers are those of `ClientRunner.get_hn_dict()`: a linear with its bias and GELU is one `conv`, a residual sum an
`ew_add`, a norm a `layer_normalization` and a `normalization`, attention two `matmul` and a `softmax`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from nightjar.graphs.fusion import Group

ENDS = frozenset({"input_layer", "output_layer"})
ATTENTION = frozenset({"matmul", "softmax"})  # kinds of which a16_w16 is reported to be refused


class Layer(NamedTuple):
    """A layer of the DFC's network, `net/kindN`."""

    name: str
    kind: str
    nodes: tuple[str, ...]  # of the ONNX graph
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # put out, channels last

    @property
    def own(self) -> str:
        """The name without the network's, as model scripts have it."""
        return self.name.rpartition("/")[2]


def layers_from(entries: Sequence[Mapping[str, Any]]) -> list[Layer]:
    """Read what toolchain/compile.py returns."""
    return [
        Layer(
            entry["name"],
            entry["kind"],
            tuple(entry["nodes"]),
            tuple(entry["inputs"]),
            tuple(tuple(shape) for shape in entry["shapes"]),
        )
        for entry in entries
    ]


def layers_of(groups: Sequence[Group], layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """List, by each group's tensor, the layers that do its work.

    A group without a product that no layer names went into the layer of what it reads, as an activation does.
    """
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.kind not in ENDS:
            for node in layer.nodes:
                by_node.setdefault(node, []).append(layer)
    found: dict[str, list[Layer]] = {}
    for group in groups:
        own = list(dict.fromkeys(layer for node in group.nodes for layer in by_node.get(node, ())))
        before = [] if group.macs else [found[name] for name in group.inputs if found.get(name)]
        found[group.tensor] = own or (before[0] if before else [])
    return found


def wide_layers(
    groups: Sequence[Group], layers: Sequence[Layer], wide: Collection[str], attention_16bit: bool
) -> list[Layer]:
    """List the layers that are to be a16_w16, in the network's order: those of the groups named by their tensors."""
    named = {
        layer
        for tensor, own in layers_of(groups, layers).items()
        if tensor in wide
        for layer in own
        if attention_16bit or layer.kind not in ATTENTION
    }
    return [layer for layer in layers if layer in named]


def eight_bit_share(groups: Sequence[Group], layers: Sequence[Layer], wide: Collection[Layer]) -> float:
    """Return the share of multiply-accumulates in layers that are not a16_w16."""
    by_tensor, total, narrow = layers_of(groups, layers), 0, 0
    for group in groups:
        own = by_tensor[group.tensor]
        total += group.macs
        if own and not any(layer in wide for layer in own):
            narrow += group.macs
    return round(narrow / total, 4) if total else 0.0
