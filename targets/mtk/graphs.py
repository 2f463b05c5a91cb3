"""What MediaTek's converter, or what stands in for it, is given of a part: modules, weights, samples, precisions.

Both trace the model's own modules with the torch of their own environment. The graphs here stay ONNX, which is what the
ranking names and the rewrites change (docs/decisions/015-one-graph.md).
"""

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nightjar.errors import BadInput, BadOptions
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.parameter_map import read_parameter_map, read_parameters
from nightjar.quantization.calibration_set import CalibrationSet

SAMPLES_BYTES = 1 << 30  # of one part's calibration samples on their way to an SDK
# A mask says -10000, which would give the scores it is added to an int8 step of 40, and an int16 step of 0.3. So
# attention with a mask has 16-bit activations, and its range ends where exp is silent whatever the scores are.
MASKED, SILENCED = -1e3, -1e3


def read_model(graphs: Path) -> dict[str, Any]:
    """Read model.json; raises BadOptions for graphs that are not ONNX."""
    model: dict[str, Any] = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    if model["recipe"]["graph_format"] != "onnx":
        raise BadOptions(
            "target mtk traces its TorchScript itself, from the weights of ONNX graphs, and these are TorchScript "
            "already: export with graph_format onnx"
        )
    return model


def hand_over(graphs: Path, part: str, folder: Path) -> dict[str, Any]:
    """Write a part's weights as .npz, which every torch reads, into `folder`; return the job that builds it again."""
    places = read_parameter_map(graphs)
    weights = read_parameters(onnx.load(graphs / read_model(graphs)["parts"][part]["file"]), places.parts[part])
    save: Any = np.savez
    save(folder / f"{part}.npz", **weights)
    return {"part": part, "module": places.module, "model": str((graphs / "model.json").resolve())}


def write_samples(samples: CalibrationSet, part: str, most: int, folder: Path) -> int:
    """Write calibration samples as `000000.npz`, … , evenly from all, at most SAMPLES_BYTES; return how many.

    Each has its inputs in the part's order, `arr_0`, `arr_1`, …; masks reach down to SILENCED and no further.
    """
    first = next(samples.samples(part, 1))
    fitting = max(1, SAMPLES_BYTES // sum(array.nbytes for array in first.values()))
    folder.mkdir(parents=True)
    count = 0
    for sample in samples.samples(part, min(most, fitting, samples.count(part))):
        arrays = [np.maximum(array, SILENCED) if array.min() <= MASKED else array for array in sample.values()]
        np.savez(folder / f"{count:06d}.npz", *arrays)  # called arr_0, arr_1, …
        count += 1
    return count


def read_plan(plan: Path, parts: Sequence[str]) -> dict[str, list[str] | None]:
    """Read plan.json: by part, the tensors whose groups keep more than 8 bits; None for a part that stays float."""
    try:
        content = json.loads(plan.read_text(encoding="utf-8"))
        kept: dict[str, list[str]] = content["float"]
        whole = content.get("whole", ())
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BadInput(
            f"{plan} is no plan ({exc}): it is {{'float': {{part: [tensor, …]}}}}; "
            "run the same command with --refresh rank"
        ) from exc
    if unknown := sorted(kept.keys() - set(parts)):
        raise BadOptions(
            f"the plan names part {unknown[0]!r}; these graphs have {', '.join(parts)}: "
            "run the same command with --refresh rank"
        )
    return {part: None if part in whole else list(kept.get(part, ())) for part in parts}


def kept_groups(graph: Path, part: str, kept: Sequence[str], patterns: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the groups that a plan keeps and those that `float_nodes` name, by their tensors.

    kept: tensors of the ONNX graph; patterns: `part:glob` over its nodes and tensors. Raises BadInput and BadOptions
    for what no group computes.
    """
    model = onnx.load(graph)
    groups = fuse(model)
    own = {group.tensor for group in groups}
    if unknown := [name for name in kept if name not in own]:
        raise BadInput(
            f"no group of part '{part}' computes {', '.join(unknown[:3])}: name tensors of the float graph such as "
            f"{groups[0].tensor} in the plan"
        )
    group_of = {name: group.tensor for group in groups for name in (*group.nodes, group.tensor)}
    named: set[str] = set()
    for pattern in patterns:
        of, _, glob = pattern.partition(":")
        if of == part:
            fitting = fnmatch.filter(group_of, glob)
            if not fitting:
                raise BadOptions(
                    f"float_nodes '{pattern}' fits no layer that could be int8; {part} has {', '.join(sorted(own))}"
                )
            named |= {group_of[name] for name in fitting}
    return set(kept), named


def check_patterns(patterns: Sequence[str], parts: Sequence[str]) -> None:
    """Raise BadOptions for an entry of `float_nodes` that is not `part:glob`."""
    for pattern in patterns:
        part, _, glob = pattern.partition(":")
        if part not in parts or not glob:
            raise BadOptions(f"float_nodes '{pattern}' is not PART:GLOB with a PART of {', '.join(parts)}")


def masked_attention(graph: Path) -> dict[str, bool]:
    """Name the attentions that add a mask, and say of each whether the mask is a constant: its range is what it is."""
    model = onnx.load(graph)
    whole = Graph(model)
    found = {}
    for group in fuse(model):
        adds = [node for node in whole.nodes if node.name in group.nodes and node.op_type == "Add"]
        if group.kind == "attention" and adds:
            found[group.tensor] = any(whole.is_constant(name) for node in adds for name in node.input)
    return found


def kinds(graph: Path) -> dict[str, str]:
    """Say what each group is, by its tensor: linear, norm, attention, …"""
    return {group.tensor: group.kind for group in fuse(onnx.load(graph))}


def gelu_inputs(graph: Path) -> set[str]:
    """Name the groups whose output a GELU reads and nothing else: what it silences needs no range."""
    model = onnx.load(graph)
    groups, outputs = fuse(model), set(Graph(model).outputs)
    readers: dict[str, set[str]] = {}
    for group in groups:
        for name in group.inputs:
            readers.setdefault(name, set()).add(group.kind)
    return {name for name, found in readers.items() if found == {"gelu"} and name not in outputs}
