"""Draw command-like utterances and speak them with espeak-ng: the nano recognisers' corpus."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import soxr
from nano_espeak import RATE_HZ, Sound, espeak

SAMPLE_RATE_HZ = 16_000
MAX_WORDS = 10
MAX_SECONDS = 9.5  # the recogniser hears 10 s


def split(text: str) -> tuple[str, ...]:
    """Return the words of a line."""
    return tuple(text.split())


# Every word but a number is left alone by Whisper's EnglishTextNormalizer, and no two sound alike.
# Missing on purpose: "second" (becomes 2nd), "litre", "grey" (respelled), "minus", "point",
# "double", "percent", "pound", "and" (act on neighbouring numbers), "two", "four" (homophones),
# "nine", "eleven", "light", "down" (near "five", "seven", "white", "brown").
NUMBER_WORDS = split("zero three five six seven eight twelve hundred")
COMMANDS = split("start stop open pause next previous reset cancel repeat delete search switch move turn")
THINGS = split("lamp door window music camera kitchen garage battery network radio volume alarm")
UNITS = split("minute hour gram degree watt inch gallon liter")
COLOURS = split("red green blue black white yellow orange purple brown silver")
NAMES = split("john frank grace ruby amber cooper penny charlie")
OTHERS = split("please today tomorrow weather hello again")
PLAIN_WORDS = COMMANDS + THINGS + UNITS + COLOURS + NAMES + OTHERS
WORDS = NUMBER_WORDS + PLAIN_WORDS

ACCENTS = ("en-029", "en-gb-scotland", "en-gb-x-rp", "en-us", "en-us-nyc")
# An espeak-ng variant is a speaker: formants, pitch, breath. Whole variants are held out, so no
# accent of an evaluation speaker is heard in training. Effects (whisper, croak, robosoft, Demonic,
# announcer) are not people and stay out.
TRAINING_VARIANTS = split(
    "Alex Alicia Andrea Andy Denis Diogo Gene Henrique Jacky Lee Marco Mike Nguyen adam anika"
    " belinda boris david ed edward f1 f3 f5 grandma gustave iven2 john m1 m2"
    " m4 m7 max michel norbert pablo paul rob sandro steph"
)
DEVELOPMENT_VARIANTS = split("Hugo Mario aunty linda m6 quincy")
EVALUATION_VARIANTS = split("Annie Michael f2 f4 m3 m5 m8 miguel pedro shelby travis victor")


@dataclass(frozen=True)
class Utterance:
    """Say everything that decides the samples of one clip; equal utterances sound equal."""

    text: str
    voice: str  # accent+variant, espeak-ng's own spelling
    speed_wpm: int
    pitch: int  # espeak-ng's 0..99
    gap_10ms: int  # silence between words, in steps of 10 ms
    level_dbfs: float  # RMS of the speech
    snr_db: float
    pink: bool
    lead_s: float
    tail_s: float
    noise_seed: int


def voices_of(variants: Sequence[str]) -> list[str]:
    """Return every accent of every variant as sorted espeak-ng voice names."""
    return sorted(f"{accent}+{variant}" for accent in ACCENTS for variant in variants)


def draw_words(rng: np.random.Generator, n_words: int) -> list[str]:
    """Draw words at random, never two number words in a row.

    Whisper's normaliser glues neighbouring numbers ("six seven" becomes 67), which would make
    the word error rate depend on where the glue was.
    """
    words: list[str] = []
    for _ in range(n_words):
        after_number = bool(words) and words[-1] in NUMBER_WORDS
        words.append(str(rng.choice(PLAIN_WORDS if after_number else WORDS)))
    return words


def draw_utterance(
    seed: Sequence[int],
    voice: str,
    n_words: int,
    *,
    snr_db: tuple[float, float] = (18.0, 42.0),
    level_dbfs: tuple[float, float] = (-50.0, -20.0),
) -> Utterance:
    """Draw one utterance whose every choice follows from the seed; no words is a noise clip."""
    rng = np.random.default_rng(seed)
    words = draw_words(rng, n_words)
    return Utterance(
        text=" ".join(words),
        voice=voice,
        speed_wpm=int(rng.integers(130, 201)),
        pitch=int(rng.integers(35, 66)),
        gap_10ms=int(rng.integers(0, 7)) if rng.random() < 0.5 else 0,
        level_dbfs=float(rng.uniform(*level_dbfs)),
        snr_db=float(rng.uniform(*snr_db)),
        pink=bool(rng.random() < 0.5),
        lead_s=float(rng.uniform(0.05, 0.4)),
        tail_s=float(rng.uniform(0.05, 0.4)),
        noise_seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Speech:
    """Hold clean speech at 16 kHz, trimmed, with its sounds: times count from its first sample."""

    samples: np.ndarray  # (n_samples,) float32
    sounds: list[Sound]


def speak(utterance: Utterance) -> Speech:
    """Return the clean speech of an utterance; one second of nothing if it has no words."""
    words = utterance.text.split()
    if not words:
        return Speech(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32), [])
    samples, sounds = espeak().say(
        utterance.text, utterance.voice, utterance.speed_wpm, utterance.pitch, utterance.gap_10ms
    )
    if {sound.word for sound in sounds if sound.name} != set(range(len(words))):
        raise RuntimeError(f"espeak-ng said {utterance.text!r} as other words")
    speech = soxr.resample(samples, RATE_HZ, SAMPLE_RATE_HZ)
    heard = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    trimmed_s = heard[0] / SAMPLE_RATE_HZ
    return Speech(
        speech[heard[0] : heard[-1] + 1].astype(np.float32),
        [replace(s, start_s=s.start_s - trimmed_s, end_s=s.end_s - trimmed_s) for s in sounds],
    )


def noise(rng: np.random.Generator, n_samples: int, pink: bool) -> np.ndarray:
    """Return noise of unit RMS, white or falling 3 dB an octave: (n_samples,) float32."""
    white = rng.standard_normal(n_samples)
    if pink:
        spectrum = np.fft.rfft(white)
        frequency_hz = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE_HZ)
        white = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency_hz, 50.0)), n_samples)
    return (white / np.sqrt(np.mean(white**2))).astype(np.float32)


def in_noise(utterance: Utterance, speech: np.ndarray) -> np.ndarray:
    """Return the speech of an utterance in its noise at its level: (n_samples,) int16 at 16 kHz."""
    rng = np.random.default_rng(utterance.noise_seed)
    speech_rms = float(np.sqrt(np.mean(speech**2)))
    level = 10 ** (utterance.level_dbfs / 20)
    if speech_rms > 0:
        # Peaks stay below full scale: clipping would be a property of the level, not the voice.
        speech = speech * min(level / speech_rms, 0.9 / float(np.abs(speech).max()))
    pads = [round(s * SAMPLE_RATE_HZ) for s in (utterance.lead_s, utterance.tail_s)]
    clip = np.pad(speech, pads)
    clip = clip + noise(rng, len(clip), utterance.pink) * level * 10 ** (-utterance.snr_db / 20)
    return np.round(np.clip(clip, -1.0, 1.0) * 32767).astype(np.int16)


def synthesise(utterance: Utterance) -> np.ndarray:
    """Return an utterance in its noise at its level: (n_samples,) int16 at 16 kHz."""
    return in_noise(utterance, speak(utterance).samples)


def draw_corpus(
    seed: int,
    part: int,
    voices: Sequence[str],
    n_words_of_clips: Sequence[int],
    **ranges: tuple[float, float],
) -> list[Utterance]:
    """Draw one utterance for each word count, voices in a shuffled round so that all are heard.

    `part` keeps the lists of one seed apart; each clip has its own seed, so neither the order
    of the work nor the number of processes changes a sample.
    """
    order = np.random.default_rng([seed, part]).permutation(len(voices))
    return [
        draw_utterance([seed, part, index], voices[order[index % len(voices)]], n, **ranges)
        for index, n in enumerate(n_words_of_clips)
    ]


def draw_counts(rng: np.random.Generator, n_clips: int) -> list[int]:
    """Draw clip lengths in words: 2 % noise only, 8 % single words, the rest 2 to 10."""
    kind = rng.random(n_clips)
    longer = rng.integers(2, MAX_WORDS + 1, n_clips)
    return np.where(kind < 0.02, 0, np.where(kind < 0.10, 1, longer)).tolist()
