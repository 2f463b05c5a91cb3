"""Rewrite graphs so that int8 loses less and the float result stays the same."""

from pathlib import Path

from nightjar.quantization.graph_rewrites import rewrite_graphs
from nightjar.quantization.sensitivity import read_ranking
from tasks.stage import stage


@stage
def rewrite(*, graphs: Path, ranking: Path, out: Path) -> dict[str, str]:
    """Write the graphs with the ranking's rewrites applied."""
    rewrites = read_ranking(ranking / "ranking.json").rewrites
    rewrite_graphs(graphs, rewrites, out)
    return {part: f"{len(moves)} rewrites" for part, moves in rewrites.items()}
