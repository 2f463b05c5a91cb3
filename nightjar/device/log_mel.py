"""Whisper's log-mel spectrogram in numpy: the same numbers on a host and on a board."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SAMPLE_RATE = 16000
N_FFT = 400
HOP = 160


def log_mel(wave: Array, n_mels: int, n_frames: int) -> Array:
    """Compute openai-whisper's log-mel spectrogram of `pad_or_trim(wave, n_frames * 160)`.

    wave: float32 mono 16 kHz in [-1, 1], any length. Returns (n_mels, n_frames) float32, within
    1e-4 of `whisper.log_mel_spectrogram`.
    """
    n_samples = n_frames * HOP
    wave = np.asarray(wave, np.float32).reshape(-1)[:n_samples]
    # Frames past the speech hold only padding, and their value is known: their FFTs are skipped.
    used = min(n_frames, (len(wave) + N_FFT // 2) // HOP + 1)
    padded = np.zeros(n_samples + N_FFT, np.float32)
    body = padded[N_FFT // 2 : N_FFT // 2 + n_samples]
    body[: len(wave)] = wave
    padded[: N_FFT // 2] = body[N_FFT // 2 : 0 : -1]  # torch.stft's center=True reflects
    padded[N_FFT // 2 + n_samples :] = body[-2 : -N_FFT // 2 - 2 : -1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[: used * HOP : HOP]
    spectrum = np.fft.rfft(frames * _hann(), axis=-1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    mel = np.full((n_mels, n_frames), -10.0, np.float32)
    mel[:, :used] = np.log10(np.maximum(mel_filters(n_mels) @ power.T, 1e-10))
    clamped: Array = np.maximum(mel, mel.max() - 8.0)
    return (clamped + 4.0) / 4.0


@lru_cache(maxsize=2)
def mel_filters(n_mels: int) -> Array:
    """Compute the Slaney-scale, area-normalised triangles of `librosa.filters.mel(16000, 400)`.

    Returns (n_mels, 201) float32.
    """
    highest = 15.0 + np.log(SAMPLE_RATE / 2000.0) * 27.0 / np.log(6.4)  # in mel: logarithmic above 1 kHz
    corners = _slaney_hz(np.linspace(0.0, highest, n_mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    ramps = corners[:, None] - bins[None, :]
    widths = np.diff(corners)[:, None]
    rising, falling = -ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    triangles *= 2.0 / (corners[2:] - corners[:-2])[:, None]
    return triangles.astype(np.float32)


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map Slaney's mel back to hertz."""
    log_part = 1000.0 * np.exp(np.log(6.4) / 27.0 * (mel - 15.0))
    return np.where(mel < 15.0, mel * 200.0 / 3.0, log_part)


@lru_cache(maxsize=1)
def _hann() -> Array:
    """Compute the periodic Hann window that torch.hann_window gives, (400,) float32."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
