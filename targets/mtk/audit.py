"""Count the operators and products of a .tflite by precision, from the file itself."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from targets.mtk.tflite import Model, Op, read

MOVING = ("RESHAPE", "TRANSPOSE", "QUANTIZE", "DEQUANTIZE", "CAST", "EXPAND_DIMS", "SQUEEZE", "PACK", "UNPACK")
EIGHT_BITS, SIXTEEN_BITS = {"int8", "uint8"}, {"int16"}


def audit(path: Path) -> dict[str, Any]:
    """Return size_bytes, int8_mac_share, w8a16_mac_share, nodes_total, nodes_int8, nodes_w8a16 and ops by name.

    A product counts as int8 when it reads and writes 8-bit values, as w8a16 when either has 16 bits.
    """
    model = read(path)
    macs, nodes = Counter[str](), Counter[str]()
    for op in model.ops:
        if op.op not in MOVING:
            kind = precision(model, op)
            nodes[kind] += 1
            macs[kind] += products(model, op)
    total = macs.total() or 1
    return {
        "size_bytes": path.stat().st_size,
        "int8_mac_share": round(macs["int8"] / total, 4),
        "w8a16_mac_share": round(macs["w8a16"] / total, 4),
        "nodes_total": nodes.total(),
        "nodes_int8": nodes["int8"],
        "nodes_w8a16": nodes["w8a16"],
        "ops": dict(sorted(Counter(op.op for op in model.ops).items())),
    }


def precision(model: Model, op: Op) -> str:
    """Return the precision of an operator: int8, w8a16 or float."""
    kinds = {model.tensors[t].dtype for t in (*op.inputs[:1], *op.outputs[:1]) if t >= 0}
    if kinds <= EIGHT_BITS:
        return "int8"
    return "w8a16" if kinds <= EIGHT_BITS | SIXTEEN_BITS else "float"


def products(model: Model, op: Op) -> int:
    """Count an operator's multiply-accumulates; of MediaTek's own operators only those with a constant matrix."""
    out = math.prod(model.tensors[op.outputs[0]].shape)
    match op.op.removeprefix("MTKEXT_"):
        case "FULLY_CONNECTED":
            return out * model.tensors[op.inputs[1]].shape[-1]
        case "CONV_2D":
            return out * math.prod(model.tensors[op.inputs[1]].shape[1:])
        case "BATCH_MATMUL":
            return out * model.tensors[op.inputs[0]].shape[-1]
    return 0
