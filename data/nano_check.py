"""Decode a manifest with stock Whisper and count word errors: what the shipped number means."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import whisper
from whisper.normalizers import EnglishTextNormalizer

CONTEXT_SAMPLES = 160_000  # 10 s at 16 kHz: n_audio_ctx 500


@dataclass(frozen=True)
class WordErrors:
    """Count the edits that turn the references into the hypotheses, over a whole corpus."""

    substitutions: int
    deletions: int
    insertions: int
    n_words: int

    @property
    def wer(self) -> float:
        """Return the corpus word error rate, a fraction of the reference words."""
        edits = self.substitutions + self.deletions + self.insertions
        return edits / max(1, self.n_words)

    def __str__(self) -> str:
        """Return the line that goes into logs and tables."""
        return (
            f"WER {100 * self.wer:.2f} % (S {self.substitutions} D {self.deletions} "
            f"I {self.insertions}) of {self.n_words} words"
        )


def align(reference: list[str], hypothesis: list[str]) -> tuple[int, int, int]:
    """Return (substitutions, deletions, insertions) of a cheapest alignment."""
    # Rows of (edits, S, D, I): min compares edits first, and ties prefer fewer substitutions.
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, word in enumerate(reference, 1):
        above, row = row, [(i, 0, i, 0)]
        for j, heard in enumerate(hypothesis, 1):
            edits, s, d, n = above[j - 1]
            wrong = int(word != heard)
            best = (edits + wrong, s + wrong, d, n)
            edits, s, d, n = above[j]
            best = min(best, (edits + 1, s, d + 1, n))
            edits, s, d, n = row[j - 1]
            row.append(min(best, (edits + 1, s, d, n + 1)))
    return row[-1][1:]


def word_errors(references: list[str], hypotheses: list[str]) -> WordErrors:
    """Count the word errors of a corpus after Whisper's own English normaliser."""
    normalise = EnglishTextNormalizer()
    counts = np.zeros(4, dtype=int)
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words = normalise(reference).split()
        counts += np.array([*align(words, normalise(hypothesis).split()), len(words)])
    return WordErrors(*(int(count) for count in counts))


def read_manifest(manifest: Path) -> list[dict]:
    """Return the rows of a NeMo-style manifest, one JSON object a line."""
    return [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]


def read_clip(manifest: Path, row: dict) -> np.ndarray:
    """Return the samples of a row: (n_samples,) float32 at 16 kHz."""
    samples, rate_hz = soundfile.read(manifest.parent / row["audio_filepath"], dtype="float32")
    if rate_hz != whisper.audio.SAMPLE_RATE:
        raise ValueError(f"{row['audio_filepath']} is at {rate_hz} Hz; 16000 is what Whisper hears")
    return samples


def transcribe(model: whisper.Whisper, clips: list[np.ndarray], *, n_batch: int = 16, quiet: bool = True) -> list[str]:
    """Return the text of clips of at most 10 s by stock log-mel, padding and `whisper.decode`."""
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
    texts: list[str] = []
    for first in range(0, len(clips), n_batch):
        mels = [
            whisper.log_mel_spectrogram(whisper.pad_or_trim(clip, CONTEXT_SAMPLES))
            for clip in clips[first : first + n_batch]
        ]
        results = whisper.decode(model, torch.stack(mels).to(model.device), options)
        texts += [result.text for result in results]
        if not quiet:
            print(f"decoded {len(texts)} of {len(clips)} clips", flush=True)
    return texts


def check(checkpoint: Path, manifest: Path, *, verbose: bool = False) -> WordErrors:
    """Return the word errors of a checkpoint on a manifest, everything stock."""
    model = whisper.load_model(str(checkpoint), device="cpu")
    rows = read_manifest(manifest)
    texts = transcribe(model, [read_clip(manifest, row) for row in rows], quiet=not verbose)
    if verbose:
        for row, text in zip(rows, texts, strict=True):
            if word_errors([row["text"]], [text]).wer:
                print(f"{row['id']} {row['speaker']}: {row['text']!r} heard as {text.strip()!r}")
    return word_errors([row["text"] for row in rows], texts)
