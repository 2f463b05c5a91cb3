"""Steps are drawn uniformly, the same in any order, with some of every stratum."""

import tracemalloc

import numpy as np

from models.zipformer.reservoir import draw
from nightjar.scoring.streaming import STRATA, stratum_index


def test_the_same_steps_are_drawn_in_any_order() -> None:
    names = [f"clip{number % 40}/{number // 40}" for number in range(800)]
    strata = {name: stratum_index(int(name.split("/")[1])) for name in names}
    drawn = []
    for order in (names, names[::-1], np.random.default_rng(3).permutation(names).tolist()):
        drawn.append(draw(((name, strata[name]) for name in order), 50, 4, seed=1))
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 50
    assert draw(strata.items(), 50, 4, seed=2) != drawn[0]


def test_every_stratum_has_its_share_and_every_step_its_chance() -> None:
    n_seeds, size, counts = 400, 30, np.zeros(300)
    for seed in range(n_seeds):
        steps = ((f"{number}", 0 if number else 1) for number in range(300))  # one step alone in its stratum
        chosen = draw(steps, size, 2, seed)
        assert "0" in chosen
        assert len(chosen) == size
        counts[[int(name) for name in chosen]] += 1
    rest = counts[1:] / n_seeds
    expected = (size - 1) / 299
    assert abs(rest.mean() - expected) < 1e-9
    assert np.abs(rest - expected).max() < 5 * (expected * (1 - expected) / n_seeds) ** 0.5


def test_steps_that_are_not_drawn_take_no_memory() -> None:
    tracemalloc.start()
    drawn = draw(((f"{number}", number % 6) for number in range(50_000)), 10, 3, seed=0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 10
    assert peak_bytes < 100_000  # what is held is bounded by what is asked for


def test_strata_are_by_how_far_into_a_stream() -> None:
    assert [STRATA[stratum_index(chunk)] for chunk in (0, 1, 2, 3, 4, 7, 8, 15, 16, 900)] == [
        *("first", "second", "3rd to 4th", "3rd to 4th", "5th to 8th", "5th to 8th"),
        *("9th to 16th", "9th to 16th", "later", "later"),
    ]
