"""sherpa-onnx itself: the baseline without any code of this project."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from sherpa_onnx.online_recognizer import OnlineRecognizer

from models.zipformer.checkpoint import find_files, load_checkpoint
from models.zipformer.stream import tail_samples
from nightjar.speech.audio import load_audio


class Stock:
    """One recogniser of sherpa-onnx; it transcribes clips greedily, each in a stream of its own."""

    window_s = 3600.0  # as in export.py

    def __init__(self, checkpoint: Path) -> None:
        model = load_checkpoint(checkpoint)
        files: dict[str, Any] = {name: str(file) for name, file in find_files(checkpoint).items()}
        self.chunk = {"frames": int(model.metadata["T"]), "shift": int(model.metadata["decode_chunk_len"])}
        # Symbols as sherpa-onnx writes them.
        self.numbers = {symbol.replace("▁", " "): number for number, symbol in enumerate(model.symbols)}
        self.recognizer = OnlineRecognizer.from_transducer(**files, num_threads=1, decoding_method="greedy_search")

    def transcribe(self, audio: Path, language: str) -> dict[str, Any]:
        """Return a session line's fields for one clip, with the same silence at its end as our streams have."""
        wave = load_audio(audio).astype(np.float32) / 32768.0
        start = time.perf_counter()
        stream = self.recognizer.create_stream()
        stream.accept_waveform(16000, wave)
        stream.accept_waveform(16000, np.zeros(tail_samples(len(wave), {"chunk": self.chunk}), np.float32))
        stream.input_finished()
        while self.recognizer.is_ready(stream):
            self.recognizer.decode_stream(stream)
        result = self.recognizer.get_result_all(stream)
        total_s = time.perf_counter() - start
        numbers = [self.numbers.get(symbol) for symbol in result.tokens]
        tokens = [] if None in numbers else numbers  # it may write the pieces of a character another way
        return {
            "tokens": tokens,
            "steps": len(tokens),
            "capped": False,
            "agree": None,
            "seconds": {"total": round(total_s, 5)},
            "audio_s": round(len(wave) / 16000, 4),
            "text": result.text.strip(),
        }

    transcribe_long = transcribe  # a stream is as long as it is


load_stock = Stock
