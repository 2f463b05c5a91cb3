"""Speak text through the espeak-ng library, which also tells when each word and each sound begins."""

import ctypes
import shutil
from dataclasses import dataclass
from functools import cache

import numpy as np

LIBRARY = "libespeak-ng.so.1"
RATE_HZ = 22_050
AMPLITUDE = 50  # of 200: several variants clip at espeak's own default of 100
# Constants of speak_lib.h.
SYNCHRONOUS, PHONEME_EVENTS, UTF8 = 2, 1, 1
SPEED, VOLUME, PITCH, WORD_GAP = 1, 2, 3, 7
END_OF_EVENTS, WORD, PHONEME = 0, 1, 7


class Event(ctypes.Structure):
    """Mirror espeak_EVENT."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


@dataclass(frozen=True)
class Sound:
    """Say when one phoneme is heard; pauses have no name."""

    name: str
    word: int  # position in the text
    start_s: float
    end_s: float


class Espeak:
    """Hold the library of this process and what it has said since it was last asked."""

    def __init__(self) -> None:
        """Load and start the library."""
        self.engine = ctypes.CDLL(LIBRARY)
        rate_hz = self.engine.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS)
        if rate_hz != RATE_HZ:
            raise RuntimeError(f"espeak-ng speaks at {rate_hz} Hz instead of {RATE_HZ}")
        self.samples: list[np.ndarray] = []
        self.events: list[tuple[int, int, str]] = []
        self.callback = Callback(self.hear)  # kept: the library only borrows it
        self.engine.espeak_SetSynthCallback(self.callback)

    def hear(self, samples: "ctypes._Pointer", n_samples: int, events: "ctypes._Pointer") -> int:
        """Keep a piece of sound and its events."""
        if samples and n_samples > 0:
            self.samples.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        position = 0
        while events[position].type != END_OF_EVENTS:
            event = events[position]
            if event.type in (WORD, PHONEME):
                name = event.id.decode(errors="replace") if event.type == PHONEME else ""
                self.events.append((event.type, event.sample, name))
            position += 1
        return 0

    def say(self, text: str, voice: str, speed_wpm: int, pitch: int, gap_10ms: int) -> tuple[np.ndarray, list[Sound]]:
        """Return the speech (n_samples,) float32 at 22 050 Hz and its sounds in order."""
        self.samples, self.events = [], []
        if self.engine.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((SPEED, speed_wpm), (VOLUME, AMPLITUDE), (PITCH, pitch), (WORD_GAP, gap_10ms)):
            self.engine.espeak_SetParameter(parameter, value, 0)
        spoken = text.encode()
        failed = self.engine.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, UTF8, None, None)
        self.engine.espeak_Synchronize()
        if failed or not self.samples or not any(np.any(piece) for piece in self.samples):
            raise RuntimeError(f"espeak-ng could not say {text!r} as {voice!r}")
        samples = np.concatenate(self.samples).astype(np.float32) / 32768.0
        return samples, self.sounds(len(samples))

    def sounds(self, n_samples: int) -> list[Sound]:
        """Return the phonemes of the last text; each lasts until the next begins."""
        word, starts = -1, []
        for kind, sample, name in self.events:
            if kind == WORD:
                word += 1
            elif name:
                starts.append((sample / RATE_HZ, word, "" if name.startswith("_") else name.strip("',%=")))
        ends = [start_s for start_s, *_ in starts[1:]] + [n_samples / RATE_HZ]
        return [Sound(name, word, start_s, end_s) for (start_s, word, name), end_s in zip(starts, ends, strict=True)]


@cache
def espeak() -> Espeak:
    """Return the library, started once in each process."""
    return Espeak()


def have_espeak() -> bool:
    """Tell whether espeak-ng is installed."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return shutil.which("espeak-ng") is not None
