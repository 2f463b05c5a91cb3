"""Steps are drawn uniformly, the same in any order, with some of every stratum."""

import numpy as np

from models.zipformer.reservoir import Reservoir
from nightjar.scoring.streaming import STRATA, stratum_index


def test_the_same_steps_are_drawn_in_any_order() -> None:
    names = [f"clip{number % 40}/{number // 40}" for number in range(800)]
    strata = {name: stratum_index(int(name.split("/")[1])) for name in names}
    drawn = []
    for order in (names, names[::-1], np.random.default_rng(3).permutation(names).tolist()):
        reservoir = Reservoir(50, 4, seed=1)
        for name in order:
            reservoir.offer(name, strata[name])
        drawn.append(reservoir.chosen())
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 50
    other = Reservoir(50, 4, seed=2)
    for name in names:
        other.offer(name, strata[name])
    assert other.chosen() != drawn[0]


def test_every_stratum_has_its_share_and_every_step_its_chance() -> None:
    n_seeds, size, counts = 400, 30, np.zeros(300)
    for seed in range(n_seeds):
        reservoir = Reservoir(size, 2, seed)
        for number in range(300):
            reservoir.offer(f"{number}", 0 if number else 1)  # one step alone in its stratum
        chosen = reservoir.chosen()
        assert "0" in chosen
        assert len(chosen) == size
        counts[[int(name) for name in chosen]] += 1
    rest = counts[1:] / n_seeds
    expected = (size - 1) / 299
    assert abs(rest.mean() - expected) < 1e-9
    assert np.abs(rest - expected).max() < 5 * (expected * (1 - expected) / n_seeds) ** 0.5


def test_what_is_said_to_be_gone_is_what_is_not_kept() -> None:
    reservoir, kept = Reservoir(10, 3, seed=0), set[str]()
    for number in range(500):
        gone = reservoir.offer(f"{number}", number % 6)
        if gone is not None:
            kept.add(f"{number}")
            kept -= set(gone)
    assert set(reservoir.chosen()) <= kept
    assert len(kept) <= 10 + 6 * 3  # what is held is bounded by what is asked for


def test_strata_are_by_how_far_into_a_stream() -> None:
    assert [STRATA[stratum_index(chunk)] for chunk in (0, 1, 2, 3, 4, 7, 8, 15, 16, 900)] == [
        *("first", "second", "3rd to 4th", "3rd to 4th", "5th to 8th", "5th to 8th"),
        *("9th to 16th", "9th to 16th", "later", "later"),
    ]
