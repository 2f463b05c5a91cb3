"""Say what a build really is: which layers run in int8, which fall to the CPU, and what share of the products is int8.

The toolkit's label is no evidence; the table of layers in its own build log is.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx

from nightjar.errors import Broken
from nightjar.graphs.macs import count_macs
from nightjar.graphs.onnx_graph import tensor_shapes
from targets.rknn.layer_mapping import LINEAR, MOVING, Layer, node_layers, node_name

BITS = {"INT4": 4, "INT8": 8, "UINT8": 8, "INT16": 16, "FLOAT16": 16, "FLOAT": 32, "INT32": 32, "INT64": 64}
EDGES = frozenset({"InputOperator", "OutputOperator"})
ROW = re.compile(r"^D RKNN: \[[\d:.]+\] (\d+)\s+(\w+)\s+([A-Z]+\d*)\s+(NPU|CPU|GPU)\s+(.*)$")
FULL_NAME = re.compile(r"\s(?:\w+):(\S+)\s*$")


class Row(NamedTuple):
    """A line of the toolkit's Network Layer Information Table."""

    op: str
    dtype: str
    target: str
    name: str  # of the layer; empty where the compiler added one


def read_table(log: str) -> list[Row]:
    """Read the table of a verbose build; raises Broken where the log has none."""
    rows = []
    for line in log.splitlines():
        if found := ROW.match(line.rstrip()):
            named = FULL_NAME.search(found[5])
            rows.append(Row(found[2], found[3], found[4], named[1] if named else ""))
    if not rows:
        raise Broken("the toolkit's log has no table of layers: run the same command again, then report it")
    return rows


def audit(
    model: onnx.ModelProto, layers: Sequence[Layer], rows: Sequence[Row]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the figures for binary.json and one entry per layer: name, op, bits, target.

    A product counts as int8 when the layer it went into runs in int8 on the NPU. Attention's two products are one
    layer's, and count with it.
    """
    table = {name: row for name, row in ((_layer_name(row.name, layers), row) for row in rows) if name}
    found = node_layers(model, layers)
    shapes = tensor_shapes(model)
    total = int8 = 0
    for node in model.graph.node:
        if node.op_type in LINEAR:
            macs = count_macs(node, shapes)
            total += macs
            row = table.get(found[node.name].name) if node.name in found else None
            if row is not None and (row.dtype, row.target) == ("INT8", "NPU"):
                int8 += macs
    computing = [row for row in rows if row.op not in EDGES | MOVING]
    on_cpu = Counter(row.op for row in computing if row.target == "CPU")
    entries = [
        {"name": row.name, "op": row.op, "bits": BITS.get(row.dtype, 0), "target": row.target}
        for row in rows
        if row.op not in EDGES
    ]
    figures = {
        "int8_mac_share": round(int8 / total, 4) if total else 0.0,
        "nodes_total": len(computing),
        "nodes_int8": sum(row.dtype == "INT8" for row in computing),
        "nodes_on_cpu": dict(sorted(on_cpu.items())),
    }
    return figures, entries


def require_int8(part: str, figures: Mapping[str, Any]) -> None:
    """Raise Broken for a part that is called int8 and multiplies nothing in int8."""
    if not figures["int8_mac_share"]:
        raise Broken(
            f"part '{part}' came out without one int8 product; keep fewer nodes float or build with --precision fp"
        )


def _layer_name(name: str, layers: Iterable[Layer]) -> str | None:
    """Find the layer of a row: the compiler adds to the name where it fuses once more."""
    return node_name(name, (layer.name for layer in layers))
