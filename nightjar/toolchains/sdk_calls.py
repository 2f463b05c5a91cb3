"""Calls of an SDK whose versions differ, and its probes; runs inside a vendor's environment: Python 3.10, old numpy."""

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def supports(function: Callable[..., Any], argument: str) -> bool:
    """Return whether a function has an argument, takes any keyword, or is compiled and does not declare its own."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled code without a signature
        return True
    return argument in known or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())


def supported(sdk: str, wanted: Mapping[str, Any], is_supported: Callable[[str], bool]) -> dict[str, Any]:
    """Return the settings that this version of an SDK has; print the name of each other one to stderr."""
    for name in wanted:
        if not is_supported(name):
            print(f"this {sdk} has no {name}: left out", file=sys.stderr)
    return {name: value for name, value in wanted.items() if is_supported(name)}


def require_output(sdk: str, file: str | Path) -> None:
    """Raise RuntimeError where a call that reports success wrote no file or an empty one."""
    path = Path(file)
    if not path.is_file() or not path.stat().st_size:
        raise RuntimeError(f"{sdk} reports success and wrote no {path.name}")


def write_probe_graph(file: str, op: str, weight: Any, shapes: tuple[list[int], list[int]], **attributes: Any) -> None:
    """Write an ONNX graph of two operators, `op` with a constant weight and Relu; shapes: of input x and output y."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node(op, ["x", "w"], ["product"], name="product", **attributes),
        helper.make_node("Relu", ["product"], ["y"], name="relu"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in zip("xy", shapes, strict=True))
    graph = helper.make_graph(nodes, "probe", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def require_close(what: str, found: Any, wanted: Any, limit: float) -> float:
    """Return the error of an array relative to the largest value; raises RuntimeError at `limit` or above."""
    error = float(abs(found - wanted).max() / abs(wanted).max())
    if not error < limit:
        raise RuntimeError(f"{what} is {error:.1%} off")
    return error
