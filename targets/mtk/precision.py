"""Edit the precision_config_file that mtk_converter wrote, to give some tensors 16-bit activations.

In public code the file is `{"precision_specs": [{"act_names", "wgt_names", "param_names", "precision_name"}]}`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightjar.errors import Broken
from targets.mtk.tflite import Model

LISTS = ("act_names", "wgt_names", "param_names")


def set_16bit_activations(
    file: Path, model: Model, operators: Mapping[str, Sequence[int]], groups: set[str], name: str
) -> None:
    """Move the tensors of groups to the precision `name`, in place.

    model: the part converted in float, whose tensors have the names of the file; operators: of each group, by number.
    Raises Broken for a file of another form, and for a group without a tensor in the file.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        specs = [{**spec, **{kind: list(spec[kind]) for kind in LISTS}} for spec in content["precision_specs"]]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Broken(
            f"mtk_converter wrote a precision file of another form ({exc!r}): build with --precision int8 or w8a16, "
            "and report it with the converter's version"
        ) from exc
    wanted = {group: _names(model, operators[group]) for group in sorted(groups)}
    listed = {each for spec in specs for kind in LISTS for each in spec[kind]}
    unknown = [group for group, names in wanted.items() if operators[group] and not names & listed]
    if unknown:
        raise Broken(
            f"mtk_converter's precision file names no tensor of {', '.join(unknown[:3])}: its names differ from "
            "its .tflite's; build with --precision int8 or w8a16, and report it with the converter's version"
        )
    moved = {kind: list[str]() for kind in LISTS}
    names = set().union(*wanted.values())
    for spec in specs:
        if spec["precision_name"] != name:
            for kind in LISTS:
                moved[kind] += [each for each in spec[kind] if each in names]
                spec[kind] = [each for each in spec[kind] if each not in names]
    content["precision_specs"] = [*specs, {**moved, "precision_name": name}]
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _names(model: Model, numbers: Sequence[int]) -> set[str]:
    """Name the outputs of operators and the constants that they read."""
    found = set()
    for number in numbers:
        op = model.ops[number]
        constants = [t for t in op.inputs if t >= 0 and model.tensors[t].data is not None]
        found |= {model.tensors[tensor].name for tensor in (*op.outputs, *constants)}
    return found
