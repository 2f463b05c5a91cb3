"""Kaldi's filterbank in numpy against kaldi-native-fbank."""

import numpy as np
import pytest

from nightjar.device.kaldi_fbank import SHIFT, fbank
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import load_speech
from tests.conftest import SPEECH, need
from tests.models.zipformer.conftest import NANO

LOUD_DB = 50.0  # below the loudest bin of its frame


def kaldi(wave: np.ndarray) -> np.ndarray:
    """Return what sherpa-onnx's recogniser computes: its options, kaldi-native-fbank's code."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400
    made = knf.OnlineFbank(options)
    made.accept_waveform(16000, wave.tolist())
    made.input_finished()
    return np.stack([made.get_frame(number) for number in range(made.num_frames_ready)])


def waves() -> dict[str, np.ndarray]:
    """Real speech where it is, spoken speech, noise, silence, a click, full scale."""
    rng = np.random.default_rng(0)
    found = {
        clip.id: load_audio(clip.audio) / np.float32(32768) for clip in load_speech(NANO / "evaluation.jsonl")[:20]
    }
    found |= {
        "noise": rng.normal(0, 0.1, 20_000).astype(np.float32),
        "loud": np.sign(np.sin(np.arange(16_000) / 7)).astype(np.float32),
        "silence": np.zeros(8_000, np.float32),
        "click": np.eye(1, 9_000, 4_000, dtype=np.float32)[0],
        "offset": rng.normal(0.05, 0.02, 9_000).astype(np.float32),
        "short": rng.normal(0, 0.1, 250).astype(np.float32),
    }
    return {name: np.asarray(wave, np.float32) for name, wave in found.items()}


@pytest.mark.parametrize("name", sorted(waves()))
def test_equals_kaldi_within_a_ten_thousandth(name: str) -> None:
    wave = waves()[name]
    ours, theirs = fbank(wave), kaldi(wave)
    assert ours.shape == theirs.shape == ((len(wave) + SHIFT // 2) // SHIFT, 80)
    off = np.abs(ours - theirs)
    # Where a bin is 50 dB and more below its frame's loudest, float32's rounding in *their* FFT is heard: kissfft,
    # compiled with -ffast-math. Ours is in float64.
    loud = theirs > theirs.max(axis=1, keepdims=True) - LOUD_DB / 10 * np.log(10)
    assert off[loud].max() <= 1e-4
    assert (off > 1e-4).mean() <= 2e-3
    assert off.max() <= 0.05


def test_real_speech_equals_kaldi_too() -> None:
    need("shared", SPEECH.is_dir(), f"no {SPEECH}")
    for path in sorted(SPEECH.rglob("*.flac"))[:10]:
        wave = load_audio(path).astype(np.float32) / 32768
        off = np.abs(fbank(wave) - (theirs := kaldi(wave)))
        assert off[theirs > theirs.max(axis=1, keepdims=True) - LOUD_DB / 10 * np.log(10)].max() <= 1e-4


def test_the_level_scales_as_energy_does() -> None:
    wave = waves()["noise"]
    louder = fbank(2 * wave) - fbank(wave)
    assert np.allclose(louder, 2 * np.log(2), atol=1e-4)


def test_a_constant_is_silence() -> None:
    assert np.allclose(fbank(np.full(4_000, 0.25, np.float32)), fbank(np.zeros(4_000, np.float32)), atol=12)
    assert np.isfinite(fbank(np.zeros(4_000, np.float32))).all()
