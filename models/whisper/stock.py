"""openai-whisper itself, in its own window: the baseline without any code of this project."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from whisper.audio import HOP_LENGTH, log_mel_spectrogram, pad_or_trim
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.decoding import decode as whisper_decode
from whisper.transcribe import transcribe as whisper_transcribe

from models.whisper.checkpoint import load_checkpoint, stock
from models.whisper.tokens import decode_text
from nightjar.speech.audio import load_audio


class Stock:
    """One openai-whisper model; it transcribes clips greedily and without timestamps."""

    def __init__(self, checkpoint: Path) -> None:
        loaded = load_checkpoint(checkpoint)
        self.model, self.vocabulary = stock(loaded), loaded.vocabulary
        self.n_frames = 2 * self.model.dims.n_audio_ctx
        self.window_s = self.n_frames / 100

    def transcribe(self, audio: Path, language: str, task: str = "transcribe") -> dict[str, Any]:
        """Return a session line's fields for one clip no longer than the window."""
        wave = load_audio(audio).astype(np.float32) / 32768.0
        options = DecodingOptions(**self._options(language, task))
        start = time.perf_counter()
        padded = pad_or_trim(wave, self.n_frames * HOP_LENGTH)
        mel = log_mel_spectrogram(torch.from_numpy(padded), self.model.dims.n_mels)
        result = whisper_decode(self.model, mel, options)
        assert isinstance(result, DecodingResult)
        text = decode_text(self.vocabulary, result.tokens)  # with the text of added tokens
        return self._line(wave, [list(result.tokens)], text, result.language, start)

    def transcribe_long(self, audio: Path, language: str, task: str = "transcribe") -> dict[str, Any]:
        """Return a session line's fields for one clip of any length, by openai-whisper's own long form.

        That is whisper.transcribe at temperature 0, each window on its own and without timestamps: cut wherever the
        window ends, and a window skipped that it takes for silence.
        """
        wave = load_audio(audio).astype(np.float32) / 32768.0
        start = time.perf_counter()
        with _window_of(self.n_frames):
            options = {"temperature": 0.0, "condition_on_previous_text": False, **self._options(language, task)}
            result = whisper_transcribe(self.model, wave, verbose=None, **options)
        windows = [segment["tokens"] for segment in result["segments"]]
        return self._line(wave, windows, result["text"].strip(), result["language"], start)

    def _options(self, language: str, task: str) -> dict[str, Any]:
        """Return openai-whisper's options: with language None it detects one, which an English-only model cannot."""
        known = {"auto": None if self.model.is_multilingual else "en"}.get(language, language)
        return {"task": task, "language": known, "without_timestamps": True, "fp16": False}

    def _line(self, wave: np.ndarray, windows: list[Any], text: str, language: str, start: float) -> dict[str, Any]:
        tokens = [token for window in windows for token in window]
        return {
            "tokens": tokens,
            "language": language,
            "steps": len(tokens),
            "capped": any(len(window) >= self.model.dims.n_text_ctx // 2 for window in windows),
            "agree": None,
            "seconds": {"total": round(time.perf_counter() - start, 5)},
            "audio_s": round(len(wave) / 16000, 4),
            "text": text,
        }


@contextlib.contextmanager
def _window_of(n_frames: int) -> Iterator[None]:
    """Let whisper.transcribe step by `n_frames`: it assumes 30 s, and a model may have less."""
    module: Any = sys.modules["whisper.transcribe"]  # as an attribute of whisper it is the function
    before = module.N_FRAMES, module.N_SAMPLES
    module.N_FRAMES, module.N_SAMPLES = n_frames, n_frames * HOP_LENGTH
    try:
        yield
    finally:
        module.N_FRAMES, module.N_SAMPLES = before


load_stock = Stock
