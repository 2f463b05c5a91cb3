"""What MediaTek's converter and its stand-in share: weights, samples, groups by precision, the loop over parts.

Both trace the model's own modules with the torch of their own environment. The graphs here stay ONNX: the ranking names
their tensors, and the rewrites change them (docs/decisions/015-one-graph.md).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nightjar.errors import BadInput
from nightjar.graphs.fusion import fuse
from nightjar.graphs.onnx_file import load_model
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.parameter_map import read_parameter_map, read_parameters
from nightjar.plugins import target_build
from nightjar.plugins.target_build import Entry
from nightjar.progress import tick
from nightjar.quantization.calibration_set import CalibrationSet
from targets.mtk.options import Options

if TYPE_CHECKING:  # an edit of the stand-in builds no .dla again
    from targets.mtk.stand_in.options import Options as StandInOptions

SAMPLES_BYTES = 1 << 30  # of one part's calibration samples on their way to an SDK
# With a mask of -10000 the scores it is added to have an int8 step of 40, and an int16 step of 0.3. So attention with a
# mask has 16-bit activations, and its range ends where exp is 0 for all scores.
MASKED, SILENCED = -1e3, -1e3

BuildPart = Callable[[str, list[str] | None, list[str]], Entry]


def read_model(graphs: Path) -> dict[str, Any]:
    """Read model.json; raises BadOptions for graphs that are not ONNX."""
    return target_build.read_model(graphs, "mtk", "it traces TorchScript itself from the weights of ONNX graphs; ")


def build_parts(
    graphs: Path,
    model: dict[str, Any],
    options: "Options | StandInOptions",
    plan: Path | None,
    out: Path,
    target: str,
    build: BuildPart,
) -> None:
    """Write a binary; `build` makes a part from its name, the plan's tensors (None for a float part), `float_nodes`.

    Raises Broken for an int8 or w8a16 part without one such product.
    """
    parts, precision = list(model["parts"]), options.precision
    globs = target_build.float_node_globs(options.float_nodes, parts)
    chosen = target_build.read_plan(plan, parts) if plan is not None else target_build.Plan({p: [] for p in parts})
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    for number, part in enumerate(parts, 1):
        is_float = precision == "fp" or part in chosen.whole_parts
        entry = build(part, None if is_float else chosen.float_tensors[part], globs[part])
        entries[part] = entry | {kind: model["parts"][part][kind] for kind in ("inputs", "outputs")}
        if precision in ("int8", "w8a16"):
            target_build.require_products(part, precision, entry[f"{precision}_mac_share"])
        tick(number, len(parts))
    target_build.write_binary(graphs, model, entries, out, target=target, precision=precision)


class PartGraph:
    """The ONNX graph of one part and its groups."""

    def __init__(self, graphs: Path, model: Mapping[str, Any], part: str) -> None:
        self.graphs, self.part = graphs, part
        self.onnx = load_model(graphs / model["parts"][part]["file"])
        self.graph, self.groups = Graph(self.onnx), fuse(self.onnx)
        self.kinds = {group.tensor: group.kind for group in self.groups}  # linear, norm, attention, …

    def write_weights(self, folder: Path) -> dict[str, Any]:
        """Write the weights as .npz, which every torch reads, into `folder`; return the job that rebuilds the part."""
        places = read_parameter_map(self.graphs)
        save: Any = np.savez
        save(folder / f"{self.part}.npz", **read_parameters(self.onnx, places.parts[self.part]))
        return {"part": self.part, "module": places.module, "model": str((self.graphs / "model.json").resolve())}

    def check_plan(self, tensors: Iterable[str]) -> set[str]:
        """Return the tensors of a plan; raises BadInput for one that no group computes."""
        if unknown := [name for name in tensors if name not in self.kinds]:
            raise BadInput(
                f"no group of part '{self.part}' computes {', '.join(unknown[:3])}: name tensors of the float graph "
                f"such as {self.groups[0].tensor} in the plan"
            )
        return set(tensors)

    def match_float_nodes(self, globs: Sequence[str]) -> set[str]:
        """Return the tensors of the groups that the globs of `float_nodes` match; raises BadOptions for no match."""
        group_of = {name: group.tensor for group in self.groups for name in (*group.nodes, group.tensor)}
        return set(target_build.match_float_nodes(self.part, globs, group_of, sorted(self.kinds)))

    @cached_property
    def masked_attention(self) -> dict[str, bool]:
        """The attentions with a mask, by tensor, with whether the mask is a constant, whose range is fixed."""
        found = {}
        for group in self.groups:
            adds = [node for node in self.graph.nodes if node.name in group.nodes and node.op_type == "Add"]
            if group.kind == "attention" and adds:
                found[group.tensor] = any(self.graph.is_constant(name) for node in adds for name in node.input)
        return found


def write_samples(samples: CalibrationSet, part: str, most: int, folder: Path) -> None:
    """Write samples as `000000.npz`, …, evenly spread, inputs in the part's order, masks cut at SILENCED."""
    first = next(samples.samples(part, 1))
    fitting = max(1, SAMPLES_BYTES // sum(array.nbytes for array in first.values()))
    folder.mkdir(parents=True)
    for number, sample in enumerate(samples.samples(part, min(most, fitting))):
        arrays = [np.maximum(array, SILENCED) if array.min() <= MASKED else array for array in sample.values()]
        np.savez(folder / f"{number:06d}.npz", *arrays)  # named arr_0, arr_1, …
