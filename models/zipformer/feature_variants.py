"""Features and states that other ports calibrate with, for comparison with the true ones; host side.

The recogniser gets none of them: they are here to be measured (docs/zipformer.md).
"""

from typing import Literal

import numpy as np

from nightjar.device.kaldi_fbank import FIRST, LENGTH, N_FFT, PREEMPHASIS, SHIFT, fbank, mel_filters

Features = Literal["kaldi", "librosa", "waveform-dc"]
States = Literal["sampled", "zero", "full"]


def librosa_log_mel(wave: np.ndarray) -> np.ndarray:
    """Compute log-mels as ports based on librosa do: no mean is removed, and there is no pre-emphasis."""
    pad = -FIRST
    padded = np.pad(wave.astype(np.float32), (pad, LENGTH), mode="reflect" if len(wave) > LENGTH else "edge")
    count = (len(wave) + SHIFT // 2) // SHIFT
    frames = np.lib.stride_tricks.sliding_window_view(padded, LENGTH)[: count * SHIFT : SHIFT]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(LENGTH) / LENGTH)
    spectrum = np.fft.rfft(frames * hann, N_FFT, axis=1)[:, : N_FFT // 2]
    power = (np.abs(spectrum) ** 2).astype(np.float32)
    return np.asarray(np.log(np.maximum(power @ mel_filters(), np.finfo(np.float32).eps)), np.float32)


def emphasised_log_mel(wave: np.ndarray) -> np.ndarray:
    """Compute the same after removing the mean and emphasising the whole waveform instead of each frame."""
    centred = wave - wave.mean(dtype=np.float64).astype(np.float32)
    before = np.concatenate([centred[:1], centred[:-1]]) if len(wave) else centred
    return librosa_log_mel((centred - PREEMPHASIS * before).astype(np.float32))


# From a wave, float32 mono 16 kHz in [-1, 1], to frames (n, 80).
FEATURES = {"kaldi": fbank, "librosa": librosa_log_mel, "waveform-dc": emphasised_log_mel}
