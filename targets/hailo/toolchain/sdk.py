"""Talk to the DFC: calls by the arguments that this version has, its layers as plain data.

Imported in the toolchain's environment, and by the host only for its names: hailo_sdk_client is imported on first use.
"""

import contextlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def open_runner(**arguments: Any) -> Any:
    """Make a ClientRunner; raises ImportError where the environment is broken."""
    from hailo_sdk_client import ClientRunner  # type: ignore[import-not-found]  # in the toolchain's environment only

    return ClientRunner(**arguments)


def version() -> str:
    """Return the DFC's version."""
    import hailo_sdk_client

    return str(hailo_sdk_client.__version__)


def known_arguments(function: Callable[..., Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the arguments that this version has, and say on stderr which it has not."""
    known = inspect.signature(function).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    for name in wanted.keys() - known.keys():
        if not takes_any:
            print(f"this DFC has no {name}: left out", file=sys.stderr)
    return {name: value for name, value in wanted.items() if name in known or takes_any}


def layers(runner: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """List a network's layers as name, kind, nodes of the ONNX graph, inputs, shapes; and its outputs in order.

    An output is named as HailoRT names it: by the layer that makes it, not by its `output_layer`.
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


def require(path: str) -> None:
    """Raise RuntimeError where a call that reports success has left no file."""
    if not Path(path).is_file() or not Path(path).stat().st_size:
        raise RuntimeError(f"the DFC reports success and wrote no {Path(path).name}")


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Keep what the DFC and TensorFlow print, in C, off stdout: a session's result lines go there."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
