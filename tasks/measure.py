"""Measure a precision plan on calibration speech: the binary against the float graphs, where the target runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.quantization.mixed_precision import Measurement
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
    total, steps = 0.0, 0
    for mine, theirs in _watched_steps(wanted, got):
        left, right = (_distribution(step) for step in (mine, theirs))
        total += float((left * (np.log(left) - np.log(right))).sum())
        steps += 1
    return (total / steps if steps else math.nan), steps


def logit_snr_db(wanted: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> float:
    """Return the SNR in dB of the watched logits, at most 200."""
    signal = noise = 0.0
    for mine, theirs in _watched_steps(wanted, got):
        left, right = np.array(mine[0]), np.array(theirs[0])
        signal += float((left**2).sum())
        noise += float(((left - right) ** 2).sum())
    return min(200.0, 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30)))


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
