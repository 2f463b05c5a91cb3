"""Map groups of the ONNX graph to the DFC's layers, by the node names that the DFC records for each layer.

The layers are those of `ClientRunner.get_hn_dict()`: a linear with its bias and GELU is one `conv`, a residual sum an
`ew_add`, a norm a `layer_normalization` and a `normalization`, attention two `matmul` and a `softmax`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nightjar.graphs.fusion import Group

BOUNDARY_KINDS = frozenset({"input_layer", "output_layer"})
ATTENTION = frozenset({"matmul", "softmax"})  # kinds for which the DFC is reported to refuse a16_w16


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the DFC's network, `net/kindN`; one layer is one object."""

    name: str
    kind: str
    nodes: Sequence[str]  # of the ONNX graph
    inputs: Sequence[str]
    shapes: Sequence[Sequence[int]]  # of its outputs, channels last

    @property
    def own_name(self) -> str:
        """The name without the network's, as in model scripts."""
        return self.name.rpartition("/")[2]


def layers_of(groups: Sequence[Group], layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """List the layers that compute each group, by its tensor; an activation was fused into the layer of its input."""
    computing = [layer for layer in layers if layer.kind not in BOUNDARY_KINDS]
    found: dict[str, list[Layer]] = {}
    for group in groups:
        own = [layer for node in group.nodes for layer in computing if node in layer.nodes]
        before = [] if group.macs else [found[name] for name in group.inputs if found.get(name)]
        found[group.tensor] = list(dict.fromkeys(own)) or (before[0] if before else [])
    return found


def layers_16bit(
    groups: Sequence[Group], layers: Sequence[Layer], tensors: Collection[str], attention_16bit: bool
) -> list[Layer]:
    """List the layers of the groups with these tensors, in the network's order."""
    found = layers_of(groups, layers)
    named = {layer for tensor in tensors for layer in found.get(tensor, ())}
    return [layer for layer in layers if layer in named and (attention_16bit or layer.kind not in ATTENTION)]


def int8_mac_share(groups: Sequence[Group], layers: Sequence[Layer], in_16bit: Collection[Layer]) -> float:
    """Return the share of multiply-accumulates in layers of 8 bits."""
    found = layers_of(groups, layers)
    int8 = [group for group in groups if found[group.tensor] and not set(found[group.tensor]) & set(in_16bit)]
    total = sum(group.macs for group in groups)
    return round(sum(group.macs for group in int8) / total, 4) if total else 0.0
