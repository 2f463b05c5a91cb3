"""Precision plans of a search: written, and measured on calibration speech, the binary against the float graphs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from nightjar.quantization.mixed_precision import Measurement, ladder, pareto
from nightjar.quantization.part_chain import snr_decibels
from nightjar.quantization.sensitivity import read_ranking
from nightjar.scoring.score import errors_and_words, score
from nightjar.scoring.wer import paired_bootstrap
from tasks.hypotheses import read_hypotheses
from tasks.judge import clips_from_lines
from tasks.stage import stage


@stage
def measure(*, reference: Path, hypotheses: Path, language: str, out: Path) -> dict[str, str]:
    """Write `measured.json`: divergence and agreement on the float text's prefix, and the loss of free decoding.

    reference: hypotheses of the float graphs; hypotheses: those of the binary.
    """
    wanted, got = read_hypotheses(reference), read_hypotheses(hypotheses)
    clips = clips_from_lines(wanted)
    scores = [score(name, "host", clips, lines, language) for name, lines in (("float", wanted), ("binary", got))]
    bad = [{clip.id for clip in each.clips if clip.empty or clip.looping or clip.capped} for each in scores]
    kl, steps = divergence(wanted, got)
    float_errors, words = errors_and_words(scores[0].clips)
    errors, _ = errors_and_words(scores[1].clips)
    agree, tokens = (sum(line["agree"][i] for line in got if line["agree"]) for i in (0, 1))
    measured = Measurement(
        kl=float(f"{kl:.4g}"),
        agree=agree,
        tokens=tokens,
        steps=steps,
        delta_wer=round(scores[1].wer - scores[0].wer, 3),
        delta_wer_low=round(paired_bootstrap(errors, float_errors, words)[0], 3),
        new_bad=len(bad[1] - bad[0]),
        snr_db={"logits": round(logit_snr_db(wanted, got), 2)},
    )
    (out / "measured.json").write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return {"kl": f"{measured.kl:g}", "delta_wer": f"{measured.delta_wer:+.2f}"}


def divergence(wanted: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Return the mean KL in nats per watched step, and the number of steps.

    All tokens that are not watched count as one: a lower bound, tight where the watched ones have the probability.
    """
    pairs = [(_distribution(mine), _distribution(theirs)) for mine, theirs in _watched_steps(wanted, got)]
    losses = [float((left * (np.log(left) - np.log(right))).sum()) for left, right in pairs]
    return (sum(losses) / len(losses) if losses else math.nan), len(losses)


def logit_snr_db(wanted: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> float:
    """Return the SNR in dB of the watched logits, at most 200.

    A rewrite may shift all logits of a step by one number (graph_rewrites.py), so those of `got` are shifted until both
    steps have the same norm.
    """
    steps = [
        [{"logits": np.array(mine[0])}, {"logits": np.array(theirs[0]) - theirs[1] + mine[1]}]
        for mine, theirs in _watched_steps(wanted, got)
    ]
    return snr_decibels(map(tuple, steps))


Step = tuple[list[float], float]  # the watched logits, and the log of the sum of all exp


def _watched_steps(wanted: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> list[tuple[Step, Step]]:
    by_id = {line["id"]: line["watched"] for line in got if "watched" in line}
    pairs = [(line["watched"], by_id[line["id"]]) for line in wanted if line["id"] in by_id and "watched" in line]
    return [
        ((mine["logits"][i], mine["norm"][i]), (theirs["logits"][i], theirs["norm"][i]))
        for mine, theirs in pairs
        for i in range(min(len(mine["ids"]), len(theirs["ids"])))
        if mine["ids"][i] == theirs["ids"][i]
    ]


def _distribution(step: Step) -> np.ndarray:
    likely = np.exp(np.array(step[0]) - step[1])
    return np.asarray(np.maximum(np.append(likely, max(1.0 - likely.sum(), 0.0)), 1e-9))


def read_measurement(folder: Path) -> Measurement:
    """Read measured.json."""
    return Measurement.model_validate_json((folder / "measured.json").read_bytes())


class SearchRecord(BaseModel, frozen=True):
    """The measurements of a search by rung."""

    calls: dict[str, float]
    measured: dict[int, Measurement]


@stage
def plan(*, ranking: Path, calls: dict[str, float], rung: int, out: Path) -> dict[str, str]:
    """Write `plan.json` of one rung; calls: how often a part runs per clip."""
    plans = ladder(read_ranking(ranking / "ranking.json"), calls)
    (out / "plan.json").write_text(plans[rung].model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    return {"rung": f"{rung} of {len(plans)}"}


@stage
def frontier(*, ranking: Path, tried: SearchRecord, found: int, out: Path) -> dict[str, str]:
    """Write `pareto.json`: every measured rung, and the one that was taken."""
    plans = ladder(read_ranking(ranking / "ranking.json"), tried.calls)
    measured = [(plans[number], measurement) for number, measurement in sorted(tried.measured.items())]
    points = pareto(measured, plans[found])
    content = {"calls": tried.calls, "points": points, "taken": plans[found].expected.int8_mac_share}
    (out / "pareto.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return {"rungs": str(len(points))}
