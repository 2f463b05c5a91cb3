"""The numpy log-mel against openai-whisper's, on speech, on noise and at the edges."""

import numpy as np
import pytest
import torch
import whisper
from whisper.audio import mel_filters as stock_filters

from nightjar.device.log_mel import log_mel, mel_filters
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech
from tests.conftest import SPEECH, need

NOISE = np.random.default_rng(5).standard_normal(500_000).astype(np.float32) / 8
WAVES = {
    "noise longer than any window": NOISE,
    "noise that fills 10 s": NOISE[:160_000],
    "one frame short of 10 s": NOISE[:159_900],
    "ends inside the last reflection": NOISE[:159_999],
    "short": NOISE[:400],
    "one sample": NOISE[:1],
    "nothing": NOISE[:0],
    "silence": np.zeros(32_000, np.float32),
    "a loud tone, most bins near the floor": np.sin(np.arange(64_000) / 3).astype(np.float32),
    "full scale": np.sign(NOISE[:48_000]),
}


def stock(wave: np.ndarray, n_mels: int, n_frames: int) -> np.ndarray:
    padded = whisper.pad_or_trim(torch.from_numpy(wave), n_frames * 160)
    return whisper.log_mel_spectrogram(padded, n_mels).numpy()


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_are_those_whisper_ships(n_mels: int) -> None:
    np.testing.assert_allclose(mel_filters(n_mels), stock_filters("cpu", n_mels).numpy(), atol=1e-8)


@pytest.mark.parametrize("n_frames", [3000, 1000, 500])
@pytest.mark.parametrize("name", WAVES)
def test_log_mel_is_whispers(name: str, n_frames: int) -> None:
    mel = log_mel(WAVES[name], 80, n_frames)
    assert mel.dtype == np.float32
    assert mel.shape == (80, n_frames)
    np.testing.assert_allclose(mel, stock(WAVES[name], 80, n_frames), rtol=0, atol=1e-4)


def test_log_mel_of_128_bins_is_whispers() -> None:
    np.testing.assert_allclose(log_mel(NOISE, 128, 3000), stock(NOISE, 128, 3000), rtol=0, atol=1e-4)


def test_log_mel_leaves_its_input_alone() -> None:
    wave = NOISE[:1000].copy()
    wave.flags.writeable = False
    log_mel(wave, 80, 500)
    np.testing.assert_array_equal(wave, NOISE[:1000])


def test_log_mel_of_real_speech_is_whispers() -> None:
    need("shared", SPEECH.is_dir(), "real speech: set NIGHTJAR_DATA to a folder with librispeech/")
    for clip in load_speech(SPEECH / "evaluation.jsonl")[::20]:
        wave = load_audio(clip.audio).astype(np.float32) / 32768
        np.testing.assert_allclose(log_mel(wave, 80, 3000), stock(wave, 80, 3000), rtol=0, atol=1e-4)
