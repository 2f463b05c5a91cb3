"""The loss of a precision plan, from two hypotheses files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.store.artifact import Artifact, Store
from tasks.hypotheses import read_hypotheses
from tasks.measure import divergence, logit_snr_db, measure, read_measurement
from tasks.stage import Run, running

VOCABULARY = 50


def line(name: str, text: str, logits: np.ndarray, ids: np.ndarray, **said: Any) -> dict[str, Any]:
    norm = np.log(np.exp(logits).sum(axis=1))
    watched = {"ids": ids.tolist(), "logits": np.take_along_axis(logits, ids, 1).tolist(), "norm": norm.tolist()}
    known = {"reference": "a bird sings", "speaker": "s", "probe": False, "audio_s": 1.0, "seconds": {"total": 0.1}}
    return (
        {"id": name, "text": text, "tokens": [1], "steps": 3, "capped": False, "agree": [3, 3]}
        | known
        | said
        | {"watched": watched}
    )


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, VOCABULARY)) * 3


def likeliest(logits: np.ndarray) -> np.ndarray:
    return np.argsort(-logits, axis=1)[:, :16]


def test_divergence_is_that_of_the_whole_distribution_when_the_rest_is_one(logits: np.ndarray) -> None:
    ids, other = likeliest(logits), logits + np.random.default_rng(1).normal(size=logits.shape) / 3
    found, steps = divergence([line("a", "", logits, ids)], [line("a", "", other, ids)])
    expected = []
    for wanted, got, kept in zip(logits, other, ids, strict=True):
        left, right = (np.exp(row - np.log(np.exp(row).sum())) for row in (wanted, got))
        left, right = (np.append(each[kept], 1 - each[kept].sum()) for each in (left, right))
        expected.append(float((left * np.log(left / right)).sum()))
    assert steps == 6
    assert found == pytest.approx(np.mean(expected), rel=1e-6)
    assert divergence([line("a", "", logits, ids)], [line("a", "", logits, ids)])[0] == pytest.approx(0, abs=1e-12)


def test_steps_count_where_both_watched_the_same_tokens(logits: np.ndarray) -> None:
    ids = likeliest(logits)
    shorter = line("a", "", logits[:4], ids[:4])
    assert divergence([line("a", "", logits, ids)], [shorter])[1] == 4
    found, steps = divergence([line("a", "", logits, ids)], [line("b", "", logits, ids)])
    assert math.isnan(found)
    assert steps == 0


def test_snr_is_of_the_watched_logits_whatever_shifts_all_of_a_step(logits: np.ndarray) -> None:
    ids, noise = likeliest(logits), np.random.default_rng(2).normal(size=logits.shape)
    wanted = line("a", "", logits, ids)
    assert logit_snr_db([wanted], [line("a", "", logits + np.arange(6.0)[:, None], ids)]) == 200
    found = {scale: logit_snr_db([wanted], [line("a", "", logits + scale * noise, ids)]) for scale in (0.1, 0.001)}
    kept = np.take_along_axis(logits, ids, 1)
    assert found[0.001] == pytest.approx(20 * np.log10(np.sqrt(np.mean(kept**2)) / 0.001), abs=1.5)
    assert found[0.001] - found[0.1] == pytest.approx(40, abs=0.5)


def test_a_plan_is_measured_by_words_and_by_hypotheses_gone_bad(tmp_path: Path, logits: np.ndarray) -> None:
    ids = likeliest(logits)
    wanted = [line(name, "a bird sings", logits, ids) for name in "abc"]
    got = [
        line("a", "a bird sings", logits, ids),
        line("b", "", logits, ids, agree=[1, 3]),  # newly empty: three words lost
        line("c", "a bird sings", logits, ids, agree=[2, 3]),
    ]
    with running(Run(Store(tmp_path / "store"))) as run:
        made = []
        for name, lines in (("wanted", wanted), ("got", got)):
            folder = run.store.root / "given" / name
            folder.mkdir(parents=True)
            (folder / "hypotheses.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
            assert len(read_hypotheses(folder)) == 3
            made.append(Artifact(kind="given", key=name, sha256=name))
        found = measure(reference=made[0], hypotheses=made[1], language="en")
        measured = read_measurement(run.store.path(found))
    assert measured.delta_wer == pytest.approx(100 / 3, abs=0.01)
    assert measured.new_bad == 1
    assert (measured.agree, measured.tokens, measured.steps) == (6, 9, 18)
