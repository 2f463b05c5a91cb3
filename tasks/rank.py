"""Rank what int8 hurts, on the host: vendor-neutral, and read by every target's precision search."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from nightjar.plugins.registry import Plugin
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.part_chain import Chain
from nightjar.quantization.sensitivity import RankingSettings
from tasks.stage import stage


@stage
def rank(
    *, graphs: Path, calibration: Path, settings: RankingSettings, follow: Plugin | None, out: Path
) -> dict[str, str]:
    """Write `ranking.json`: each group of each part in int8 alone, and the rewrites that are exact in float.

    follow: the model's own `chain` module, where its parts are not simply run one behind the other.
    """
    import onnx

    from nightjar.quantization.sensitivity import rank as rank_groups

    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    parts = model["parts"]
    models = {name: onnx.load(graphs / part["file"]) for name, part in parts.items()}
    chain: Any = Chain if follow is None else partial(follow.load().StreamChain, model)
    ranking = rank_groups(models, CalibrationSet.open(calibration), settings, chain)
    (out / "ranking.json").write_text(ranking.model_dump_json(indent=1) + "\n", encoding="utf-8")
    moves = sum(map(len, ranking.rewrites.values()))
    return {part: f"{len(entries)} groups" for part, entries in ranking.parts.items()} | {"rewrites": str(moves)}
