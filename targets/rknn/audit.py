"""Read from the toolkit's build log which layers run in int8 or on the CPU, and compute the int8 share of MACs."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from nightjar.errors import Broken
from nightjar.graphs.macs import count_macs
from nightjar.graphs.onnx_graph import Graph
from targets.rknn.layer_mapping import LINEAR, MOVING, Layer, node_layers, node_name

DTYPE_BITS = {"INT4": 4, "INT8": 8, "UINT8": 8, "INT16": 16, "FLOAT16": 16, "FLOAT": 32, "INT32": 32, "INT64": 64}
BOUNDARY_OPS = frozenset({"InputOperator", "OutputOperator"})
# Operator, type, processor, and the layer's name at the end of the row, which some lack.
ROW = re.compile(r"^D RKNN: \[[\d:.]+\] \d+ +(\w+) +([A-Z]+\d*) +(NPU|CPU|GPU) (?:.* \w+:(\S+))?.*$", re.MULTILINE)


class Row(NamedTuple):
    """A row of the toolkit's Network Layer Information Table."""

    op: str
    dtype: str
    target: str
    name: str  # of the layer; empty for one that the compiler added


def read_table(log: str) -> list[Row]:
    """Read the table of a verbose build; raises Broken where the log has none."""
    rows = [Row(*fields) for fields in ROW.findall(log)]
    if not rows:
        raise Broken("the toolkit's log has no table of layers: run the same command again, then report it")
    return rows


def audit(graph: Graph, layers: Sequence[Layer], rows: Sequence[Row]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the figures for binary.json and one entry per layer: name, op, bits, target.

    A product counts as int8 when its layer runs in int8 on the NPU. Both products of an attention belong to one layer.
    """
    names = [layer.name for layer in layers]
    table = {name: row for row in rows if (name := node_name(row.name, names))}  # fused again, a name gets a suffix
    in_int8 = {name for name, row in table.items() if (row.dtype, row.target) == ("INT8", "NPU")}
    found = node_layers(graph, layers)
    macs = {node.name: count_macs(node, graph.shapes) for node in graph.nodes if node.op_type in LINEAR}
    int8 = sum(count for name, count in macs.items() if name in found and found[name].name in in_int8)
    computing = [row for row in rows if row.op not in BOUNDARY_OPS | MOVING]
    entries = [
        {"name": row.name, "op": row.op, "bits": DTYPE_BITS.get(row.dtype, 0), "target": row.target}
        for row in rows
        if row.op not in BOUNDARY_OPS
    ]
    figures = {
        "int8_mac_share": round(int8 / sum(macs.values()), 4) if macs else 0.0,
        "nodes_total": len(computing),
        "nodes_int8": sum(row.dtype == "INT8" for row in computing),
        "nodes_on_cpu": dict(sorted(Counter(row.op for row in computing if row.target == "CPU").items())),
    }
    return figures, entries
