"""Long form: cut audio at pauses into pieces that fit a window; numpy only."""

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
FRAME = 320  # samples, 20 ms
SMOOTHED = 5  # frames, 100 ms: the closure before a "t" is shorter, and not a pause
SEARCH = 0.5  # a piece is at least this part of the window, …
LAST = 0.25  # … and the last one this, a recogniser hallucinates on very short pieces
PAUSE = 0.25  # a pause lies in the lowest quarter between a window's quiet and its loud frames, in dB


def cut(wave: NDArray[np.int16], window_s: float, search: float = SEARCH) -> list[tuple[int, int]]:
    """Cut a wave, `(n,)` int16 at 16 kHz, into sample ranges `(start, end)` of at most `window_s` seconds.

    The ranges cover the wave in order and without overlap, and are the same for the same wave. Each ends in the middle
    of the longest and deepest pause of its window's last part, from `search` on; without a pause, in the quietest
    frame. A wave that fits the window is one range, an empty wave none. Raises ValueError for a window without a
    sample.
    """
    window = round(window_s * SAMPLE_RATE_HZ)
    if window < 1:
        raise ValueError(f"a window of {window_s:g} s has no sample at {SAMPLE_RATE_HZ} Hz")
    level_db = levels(wave)
    ranges, start = [], 0
    while len(wave) - start > window:
        latest = min(start + window, len(wave) - int(LAST * window))
        earliest = min(start + max(int(search * window), 1), latest)
        end = _cut_between(level_db, start, earliest, latest)
        ranges.append((start, end))
        start = end
    return [*ranges, (start, len(wave))] if len(wave) > start else ranges


def levels(wave: NDArray[np.int16]) -> NDArray[np.float64]:
    """Measure the level of each 20 ms frame, `(n // 320,)` dB over one step of int16, smoothed over 100 ms.

    It is the variance, so that a recorder's constant offset does not drown the pauses.
    """
    # frame by frame in float32: an hour of float64 at once would be half a gigabyte
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    blocks = [frames[i : i + 4096].astype(np.float32).var(axis=1) for i in range(0, len(frames), 4096)]
    if not blocks:
        return np.zeros(0)
    half = SMOOTHED // 2
    padded = np.pad(np.concatenate(blocks).astype(np.float64), half, mode="edge")
    power = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED).mean(axis=1)
    level_db: NDArray[np.float64] = 10 * np.log10(power + 1.0)  # + 1: digital silence is 0 dB, not minus infinity
    return level_db


def _cut_between(level_db: NDArray[np.float64], start: int, earliest: int, latest: int) -> int:
    """Choose a sample from `earliest` to `latest` to cut at; loud and quiet levels are measured from `start` on."""
    first, last = -(-earliest // FRAME), latest // FRAME
    if first >= last:
        return latest  # a window of less than a few frames
    quiet_db, loud_db = np.percentile(level_db[start // FRAME : last], [10, 90])
    near_db = level_db[first:last]
    # Relative to this window: neither an amplifier nor constant noise moves a cut.
    below_db = np.maximum(quiet_db + PAUSE * (loud_db - quiet_db) - near_db, 0.0)
    steps = np.diff(np.concatenate([[False], below_db > 0.0, [False]]).astype(np.int8))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)  # of pauses; an end is the index behind
    if not len(begins):
        frame = len(near_db) - 1 - int(np.argmin(near_db[::-1]))  # of equals the last: the fewest pieces
        return (first + frame) * FRAME + FRAME // 2
    area = np.concatenate([[0.0], np.cumsum(below_db)])  # depth times length: a long pause beats a short deep one
    best = len(begins) - 1 - int(np.argmax((area[ends] - area[begins])[::-1]))
    return int(2 * first + begins[best] + ends[best]) * FRAME // 2
