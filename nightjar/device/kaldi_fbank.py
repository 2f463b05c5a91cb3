"""Kaldi's log-mel filterbank in numpy, as sherpa-onnx computes it: the same numbers on a host and on a board.

16 kHz, frames of 25 ms every 10 ms, 80 bins from 20 to 7600 Hz, no dither, samples in [-1, 1]. Per frame: its mean is
subtracted, then pre-emphasis with the first sample repeated, then the Povey window, power spectrum of 512 points, mel,
natural log. Ports that start from librosa apply the first two to the whole waveform instead: that is another feature
(kaldi-native-fbank, csrc/feature-window.cc; sherpa-onnx, csrc/features.cc).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SAMPLE_RATE_HZ = 16000
LENGTH = 400
SHIFT = 160
N_FFT = 512
N_MELS = 80
LOW_HZ, HIGH_HZ = 20.0, 7600.0  # sherpa-onnx's high_freq is -400, counted from Nyquist
PREEMPHASIS = np.float32(0.97)
FIRST = SHIFT // 2 - LENGTH // 2  # sample at which frame 0 begins: frames are centred (snip_edges false)


def fbank(wave: Array) -> Array:
    """Compute all frames of a wave: float32 mono 16 kHz in [-1, 1] -> (n_frames, 80) float32.

    Frames that reach beyond an end read the wave reflected there.
    """
    wave = np.asarray(wave, np.float32).reshape(-1)
    places = FIRST + SHIFT * np.arange((len(wave) + SHIFT // 2) // SHIFT)[:, None] + np.arange(LENGTH)
    while ((places < 0) | (places >= len(wave))).any():  # a wave shorter than a frame is reflected again
        places = np.where(places < 0, -places - 1, places)
        places = np.where(places >= len(wave), 2 * len(wave) - 1 - places, places)
    return log_mel(wave[places])


def log_mel(frames: Array) -> Array:
    """Compute (n, 80) float32 of frames (n, 400) of raw samples."""
    frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    windowed = (frames - PREEMPHASIS * before) * _povey()
    # In float64: older numpys have no other, and a board must give the host's numbers.
    spectrum = np.fft.rfft(windowed.astype(np.float64), N_FFT, axis=1)[:, : N_FFT // 2]
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    log: Array = np.log(np.maximum(power @ mel_filters(), np.finfo(np.float32).eps)).astype(np.float32, copy=False)
    return log


@lru_cache(maxsize=1)
def mel_filters() -> Array:
    """Compute Kaldi's triangles, straight lines over mel and not over hertz: (256, 80) float32.

    In float32 throughout, as Kaldi does: the rounding of its corners weighs a loud neighbour by up to 1e-5 more or less
    (kaldi-native-fbank, csrc/mel-computations.cc).
    """
    low, high = (_mel(np.array(hz, np.float32)) for hz in (LOW_HZ, HIGH_HZ))
    width = (high - low) / np.float32(N_MELS + 1)
    left, centre, right = (low + (np.arange(N_MELS) + n).astype(np.float32) * width for n in range(3))
    bins = _mel(np.arange(N_FFT // 2, dtype=np.float32) * np.float32(SAMPLE_RATE_HZ / N_FFT))[:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    inside = (bins > left) & (bins < right)
    return np.where(inside, np.where(bins <= centre, rising, falling), np.float32(0)).astype(np.float32)


def _mel(hz: NDArray[np.float32]) -> NDArray[np.float32]:
    ratio = np.float32(1.0) + hz / np.float32(700.0)
    return np.float32(1127.0) * np.log(ratio.astype(np.float64)).astype(np.float32)


@lru_cache(maxsize=1)
def _povey() -> Array:
    """Compute the window (400,): a symmetric Hann to the power of 0.85."""
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(LENGTH) / (LENGTH - 1))
    return (hann**0.85).astype(np.float32)
