"""Count multiply-accumulates of a float ONNX graph from its shapes."""

import math
from collections.abc import Mapping
from typing import Any

from nightjar.errors import Broken

MULTIPLYING = ("MatMul", "Gemm", "Conv")
FIXED = "export with fixed shapes (for an exported graph: --refresh export)"

Shapes = Mapping[str, tuple[int, ...]]


def count_macs(node: Any, shapes: Shapes) -> int:
    """Count the multiply-accumulates of a MatMul, Gemm or Conv; Broken where its shapes are not fixed."""
    try:
        left, right, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    except KeyError as exc:
        raise Broken(f"no shape for {exc} at node '{node.name}'; {FIXED}") from exc
    if node.op_type == "Conv":  # weights (out, in / groups, kernel...)
        inner = math.prod(right[1:])
    elif node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        inner = left[0]
    else:
        inner = left[-1]
    macs = math.prod(out) * inner
    if macs <= 0:
        raise Broken(f"node '{node.name}' has no fixed shape {left} x {right} -> {out}; {FIXED}")
    return macs
