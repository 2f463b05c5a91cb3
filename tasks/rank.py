"""Rank what int8 costs, on the host, and rewrite graphs so that it costs less; targets with equal traits share both."""

from functools import partial
from pathlib import Path
from typing import Any

from nightjar.files import read_json
from nightjar.graphs.onnx_file import load_model
from nightjar.plugins.registry import Plugin
from nightjar.quantization.calibration_set import CalibrationSet
from nightjar.quantization.graph_rewrites import rewrite_graphs
from nightjar.quantization.part_chain import Chain
from nightjar.quantization.sensitivity import RankingSettings, read_ranking
from tasks.stage import stage


@stage
def rank(
    *, graphs: Path, calibration: Path, settings: RankingSettings, chain: Plugin | None, out: Path
) -> dict[str, str]:
    """Write `ranking.json`: each group of each part alone in int8, and the rewrites that are exact in float.

    chain: the model's own `chain` module, where its parts do not simply run one after the other.
    """
    from nightjar.quantization.sensitivity import rank as rank_groups

    model = read_json(graphs / "model.json")
    models = {name: load_model(graphs / part["file"]) for name, part in model["parts"].items()}
    make_chain: Any = Chain if chain is None else partial(chain.load().StreamChain, model)
    ranking = rank_groups(models, CalibrationSet.open(calibration), settings, make_chain)
    (out / "ranking.json").write_text(ranking.model_dump_json(indent=1) + "\n", encoding="utf-8")
    rewrites = sum(map(len, ranking.rewrites.values()))
    return {part: f"{len(entries)} groups" for part, entries in ranking.parts.items()} | {"rewrites": str(rewrites)}


@stage
def rewrite(*, graphs: Path, ranking: Path, out: Path) -> dict[str, str]:
    """Write the graphs with the ranking's rewrites, which are exact in float, applied."""
    rewrites = read_ranking(ranking / "ranking.json").rewrites
    rewrite_graphs(graphs, rewrites, out)
    return {part: f"{len(moves)} rewrites" for part, moves in rewrites.items()}
