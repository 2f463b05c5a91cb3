"""Write a precision plan: a rung of a ranking's ladder, and the rungs that a search measured."""

import json
from pathlib import Path

from pydantic import BaseModel

from nightjar.quantization.mixed_precision import Measurement, ladder, pareto, write_plan
from nightjar.quantization.sensitivity import read_ranking
from tasks.stage import stage


class SearchRecord(BaseModel, frozen=True):
    """The measurements of a search by rung."""

    calls: dict[str, float]
    measured: dict[int, Measurement]


@stage
def plan(*, ranking: Path, calls: dict[str, float], rung: int, out: Path) -> dict[str, str]:
    """Write `plan.json` of one rung; calls: how often a part runs per clip."""
    plans = ladder(read_ranking(ranking / "ranking.json"), calls)
    write_plan(plans[rung], out / "plan.json")
    return {"rung": f"{rung} of {len(plans)}"}


@stage
def frontier(*, ranking: Path, tried: SearchRecord, found: int, out: Path) -> dict[str, str]:
    """Write `pareto.json`: every measured rung, and the one that was taken."""
    plans = ladder(read_ranking(ranking / "ranking.json"), tried.calls)
    points = pareto([(plans[number], measured) for number, measured in sorted(tried.measured.items())])
    taken = plans[found].expected.int8_mac_share
    content = {"calls": tried.calls, "points": points, "taken": taken}
    (out / "pareto.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return {"rungs": str(len(points))}
