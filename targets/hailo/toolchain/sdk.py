"""Open the DFC and read its layers as plain data; hailo_sdk_client is imported on first use."""

import json
from typing import Any


def open_runner(**arguments: Any) -> Any:
    """Make a ClientRunner; raises ImportError where the environment is broken."""
    from hailo_sdk_client import ClientRunner  # type: ignore[import-not-found]  # in the toolchain's environment only

    return ClientRunner(**arguments)


def version() -> str:
    """Return the DFC's version."""
    import hailo_sdk_client

    return str(hailo_sdk_client.__version__)


def layers(runner: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """List a network's layers as name, kind, nodes of the ONNX graph, inputs, shapes; and its outputs in order.

    An output has the name that HailoRT uses: of the layer that computes it, not of its `output_layer`.
    """
    network = runner.get_hn_dict() if hasattr(runner, "get_hn_dict") else runner.get_hn()
    if isinstance(network, str):
        network = json.loads(network)
    scope = str(network["name"])

    def scoped(name: str) -> str:
        return name if "/" in name else f"{scope}/{name}"

    found: list[dict[str, Any]] = [
        {
            "name": scoped(name),
            "kind": str(layer["type"]),
            "nodes": [str(node) for node in layer.get("original_names") or ()],
            "inputs": [scoped(str(each)) for each in layer.get("input") or ()],
            "shapes": [[int(size) for size in shape] for shape in layer.get("output_shapes") or ()],
        }
        for name, layer in network["layers"].items()
    ]
    ends = [each["inputs"][0] for each in found if each["kind"] == "output_layer"]
    order = [scoped(str(name)) for name in network.get("net_params", {}).get("output_layers_order") or ends]
    return found, order if set(order) == set(ends) else ends
