"""Cuts of long audio: they cover it, fit the window and fall into pauses, whatever the recording is like."""

import numpy as np
import pytest
from numpy.typing import NDArray

from nightjar.device.pause_splitter import LAST, SEARCH, cut

RATE = 16000
Wave = NDArray[np.int16]


def talk(seconds: float, seed: int, loud: float = 3000.0) -> NDArray[np.float64]:
    """Noise whose loudness goes up and down 4 times a second, as syllables do, and is never off."""
    n = round(seconds * RATE)
    beat = 1.05 + np.sin(2 * np.pi * 4 * np.arange(n) / RATE)
    return np.random.default_rng(seed).standard_normal(n) * beat * loud / 2


def with_pauses(pauses: list[tuple[float, float]], seconds: float, floor: float, loud: float = 3000.0) -> Wave:
    """Talk with pauses (start, end, in seconds) over a constant noise floor."""
    wave = talk(seconds, seed=1, loud=loud)
    for start, end in pauses:
        wave[round(start * RATE) : round(end * RATE)] = 0
    noise = np.random.default_rng(2).standard_normal(len(wave)) * floor
    return np.clip(np.round(wave + noise), -32768, 32767).astype(np.int16)


def check(wave: Wave, window_s: float) -> list[tuple[int, int]]:
    """Hold the properties that every cut has; give the ranges."""
    ranges = cut(wave, window_s)
    window = round(window_s * RATE)
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges)][: len(ranges)]
    assert ranges[-1][1] == len(wave)
    lengths = [end - start for start, end in ranges]
    assert max(lengths) <= window
    if len(ranges) > 1:
        assert min(lengths) >= LAST * window - 1
        assert all(length >= SEARCH * window - 1 for length in lengths[:-1])
    assert ranges == cut(wave.copy(), window_s)
    return ranges


@pytest.mark.parametrize("floor", [0.0, 5.0, 300.0])
@pytest.mark.parametrize("loud", [1500.0, 3000.0])
def test_cuts_fall_into_the_pauses_over_any_noise_floor(floor: float, loud: float) -> None:
    pauses = [(at, at + 0.3 + at % 3 / 10) for at in (4.1, 7.9, 12.2, 16.0, 20.7, 24.9, 29.3)]
    ranges = check(with_pauses(pauses, 33, floor, loud), 5)
    for _, end in ranges[:-1]:
        assert any(start < end / RATE < stop for start, stop in pauses), f"cut at {end / RATE:.2f} s"


def test_a_cut_is_in_the_middle_of_its_pause() -> None:
    ranges = check(with_pauses([(3.6, 4.2)], 7, floor=20), 5)
    assert [end for _, end in ranges[:-1]] == [pytest.approx(3.9 * RATE, abs=0.05 * RATE)]


def test_a_long_pause_beats_a_later_short_one() -> None:
    ranges = check(with_pauses([(3.0, 3.8), (4.5, 4.7)], 9, floor=20), 5)
    assert 3.0 < ranges[0][1] / RATE < 3.8


def test_a_pause_is_not_found_where_the_last_piece_would_be_a_sliver() -> None:
    ranges = check(with_pauses([(3.0, 3.4), (4.6, 4.9)], 5.1, floor=20), 5)
    assert [3.0 < end / RATE < 3.4 for _, end in ranges] == [True, False]


def test_a_constant_offset_and_the_gain_move_no_cut() -> None:
    wave = with_pauses([(3.6, 4.2), (7.5, 7.9), (11.4, 11.7)], 14, floor=20, loud=1500)
    assert check(wave + np.int16(9000), 5) == check(wave, 5)
    close = [end for _, end in check(wave * np.int16(3), 5)]
    assert close == pytest.approx([end for _, end in check(wave, 5)], abs=0.02 * RATE)


def test_who_never_pauses_is_cut_where_it_is_quietest() -> None:
    wave = talk(12, seed=3)
    wave[round(3.9 * RATE) : round(4.1 * RATE)] *= 0.5
    ranges = check(wave.clip(-32768, 32767).astype(np.int16), 5)
    assert 3.85 < ranges[0][1] / RATE < 4.15


def test_what_fits_the_window_stays_whole() -> None:
    wave = with_pauses([(2.0, 3.0)], 5, floor=20)
    assert cut(wave, 5) == [(0, len(wave))]
    assert cut(wave[:1], 5) == [(0, 1)]
    assert cut(wave[:0], 5) == []
    assert len(check(np.concatenate([wave, wave[:1]]), 5)) == 2


@pytest.mark.parametrize("samples", [5 * RATE + 1, 5 * RATE + 319, 2 * 5 * RATE, 123_457, 60 * RATE])
@pytest.mark.parametrize(
    "kind", ["digital silence", "white noise", "full scale", "clicks", "tone", "half silent", "late", "fading"]
)
def test_odd_recordings_are_cut_by_the_same_rules(kind: str, samples: int) -> None:
    noise = np.random.default_rng(4).standard_normal(samples) * 1000
    time = np.arange(samples)
    wave = {
        "digital silence": np.zeros(samples),
        "white noise": noise,
        "full scale": np.where(time % 2, 32767, -32768),
        "clicks": np.where(time % 7919 == 0, 32767, 0),
        "tone": 8000 * np.sin(time / 10),
        "half silent": np.where(time < samples / 2, noise, 0),
        "late": np.where(time > samples - 10, 30000, 0),
        "fading": noise * np.exp(-time / samples * 10),
    }[kind]
    check(wave.astype(np.int16), 5)


@pytest.mark.parametrize("window_s", [0.02, 0.1, 0.5, 1, 2.5, 30])
def test_any_window_holds(window_s: float) -> None:
    check(with_pauses([(at, at + 0.2) for at in range(1, 40, 2)], 41, floor=20), window_s)


def test_digital_silence_takes_the_fewest_pieces() -> None:
    assert len(check(np.zeros(20 * RATE, np.int16), 5)) <= 5


def test_a_window_of_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="has no sample"):
        cut(np.zeros(10, np.int16), 0.00001)
