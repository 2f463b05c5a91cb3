"""Turn spoken utterances into Kaldi log-mels with what is said in every frame, and draw batches of whole chunks."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from nano_frames import N_LABELS, in_processes, labels_of, spoken_frames
from nano_speech import MAX_SECONDS, WORDS, Utterance, in_noise, speak
from torch import Tensor
from zipformer_layers import Shape
from zipformer_model import FLOOR, LOOKAHEAD

from nightjar.device.kaldi_fbank import fbank

SPECIAL = ("<blk>", "<sos/eos>", "<unk>")  # 0, 1 and 2, as icefall numbers them
TAIL_FRAMES = 30  # of 10 ms that are heard at least behind the speech, as in streaming
MAX_LATE_FRAMES = 150


def vocabulary() -> list[str]:
    """List the tokens by their numbers; a token is a word, with the mark of its beginning."""
    return [*SPECIAL, *(f"▁{word}" for word in WORDS)]


def tokens_of(text: str) -> list[int]:
    """Return the tokens of a line."""
    return [len(SPECIAL) + WORDS.index(word) for word in text.split()]


@dataclass(frozen=True)
class Corpus:
    """Hold log-mels end to end, with where each clip starts and what is said when."""

    mels: np.ndarray  # (n_frames_total, 80) float16
    labels: np.ndarray  # (n_frames_total / 2, 3) uint8; 0 is silence or no word yet
    starts: np.ndarray  # (n_clips + 1,) int64, in frames
    texts: list[str]
    sounds: list[str]  # names of the phonemes; the first is silence


def hear(utterance: Utterance) -> tuple[np.ndarray, list[tuple[str, int, int]], list[tuple[int, int]]]:
    """Speak an utterance; return log-mels (n_frames, 80) float16, n_frames even, its sounds and its words."""
    speech = speak(utterance)
    mel = fbank(in_noise(utterance, speech.samples).astype(np.float32) / 32768.0)
    return mel[: len(mel) // 2 * 2].astype(np.float16), *spoken_frames(utterance, speech.sounds)


def speak_corpus(utterances: list[Utterance], folder: Path, n_processes: int) -> Corpus:
    """Speak the training utterances to log-mels in a folder, or find them there."""
    mels_file, labels_file, index_file = folder / "fbank.f16", folder / "fbank-labels.u8", folder / "fbank.json"
    wanted = [asdict(u) for u in utterances]
    index = json.loads(index_file.read_text()) if index_file.exists() else {}
    if index.get("utterances") != wanted:
        began = time.monotonic()
        ends, kept, names = [0], [], [""]
        with mels_file.open("wb") as mels_out, labels_file.open("wb") as labels_out:
            for n, (mel, sounds, words) in enumerate(in_processes(hear, utterances, n_processes)):
                if len(mel) <= 100 * MAX_SECONDS:
                    mel.tofile(mels_out)
                    labels_of(len(mel) // 2, sounds, words, utterances[n].text, names).tofile(labels_out)
                    ends.append(ends[-1] + len(mel))
                    kept.append(n)
                if n % 4000 == 3999:
                    print(f"spoke {n + 1} of {len(utterances)} clips in {time.monotonic() - began:.0f} s", flush=True)
        index_file.write_text(json.dumps({"utterances": wanted, "ends": ends, "kept": kept, "names": names}))
        index = json.loads(index_file.read_text())
    mels = np.fromfile(mels_file, dtype=np.float16).reshape(-1, 80)
    labels = np.fromfile(labels_file, dtype=np.uint8).reshape(-1, N_LABELS)
    texts = [utterances[i].text for i in index["kept"]]
    return Corpus(mels, labels, np.array(index["ends"]), texts, index["names"])


@dataclass(frozen=True)
class Batch:
    """Hold what one training step needs."""

    mel: Tensor  # (n, 2 S + 7, 80)
    labels: Tensor  # (n, S, 3)
    contexts: Tensor  # (n, U + 1, 2): the last two tokens before each token, and before the end
    tokens: Tensor  # (n, U), 0 beyond the last
    counts: Tensor  # (n,)

    def to(self, device: str) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


class Batches:
    """Draw batches of clips of like length; a batch follows from the seed and the step alone."""

    def __init__(self, corpus: Corpus, shape: Shape, seed: int) -> None:
        """Sort the clips by length, all of them and those of one or two words."""
        self.corpus, self.shape, self.seed = corpus, shape, seed
        self.lengths = np.diff(corpus.starts)
        self.tokens = [tokens_of(text) for text in corpus.texts]
        self.by_length = np.argsort(self.lengths, kind="stable")
        counts = np.array([len(tokens) for tokens in self.tokens])[self.by_length]
        self.short_by_length = self.by_length[(counts >= 1) & (counts <= 2)]

    def draw(self, step: int, max_frames: int, *, short: bool = False) -> Batch:
        """Return the batch of a step: clips begun a little late now and then, all padded with digital silence."""
        rng = np.random.default_rng([self.seed, 110, step])
        order = self.short_by_length if short else self.by_length
        last = int(rng.integers(len(order)))
        late = MAX_LATE_FRAMES if rng.random() < 0.3 else 12
        longest = int(self.lengths[order[last]]) + late + TAIL_FRAMES
        chunks = -(-(longest - LOOKAHEAD) // (2 * self.shape.chunk))
        width = 2 * self.shape.chunk * chunks
        n_clips = max(1, max_frames // width)
        return self.collate(order[max(0, last + 1 - n_clips) : last + 1], rng, width, late)

    def collate(self, chosen: np.ndarray, rng: np.random.Generator, width: int, late: int) -> Batch:
        """Return clips with random level, tilt, shift and small gaps."""
        corpus = self.corpus
        mels = np.full((len(chosen), width + LOOKAHEAD, 80), FLOOR, dtype=np.float32)
        labels = np.zeros((len(chosen), width // 2, N_LABELS), dtype=np.int64)
        longest = max(1, max(len(self.tokens[i]) for i in chosen))
        tokens = np.zeros((len(chosen), longest), dtype=np.int64)
        bins = np.linspace(-1, 1, 80, dtype=np.float32)
        for i, index in enumerate(chosen):
            start, end = corpus.starts[index], corpus.starts[index + 1]
            clip = corpus.mels[start:end].astype(np.float32) + rng.uniform(-0.3, 0.3) * bins + rng.uniform(-2.5, 2.5)
            if rng.random() < 0.5:  # another throat: the spectrum moves by a bin or two
                clip = clip[:, np.clip(np.arange(80) + rng.integers(-2, 3), 0, 79)]
            shift = int(rng.integers(0, late // 2 + 1))
            if shift and rng.random() < 0.7:  # what comes before is the clip's own noise, not digital silence
                rows = rng.integers(0, 4, 2 * shift)
                mels[i, : 2 * shift] = clip[rows] + rng.normal(0, 0.5, (2 * shift, 80))
            if rng.random() < 0.5:
                self.gap(clip, rng)
            mels[i, 2 * shift : 2 * shift + len(clip)] = clip
            own = corpus.labels[start // 2 : end // 2]
            labels[i, shift : shift + len(own)] = own
            labels[i, shift + len(own) :] = (0, 0, own[-1, 2])
            tokens[i, : len(self.tokens[index])] = self.tokens[index]
        np.maximum(mels, FLOOR, out=mels)
        counts = np.array([len(self.tokens[index]) for index in chosen])
        before = np.concatenate([np.full((len(chosen), 1), -1), np.zeros((len(chosen), 1), np.int64), tokens], axis=1)
        contexts = np.stack([before[:, :-1], before[:, 1:]], axis=2)
        arrays = (mels, labels, contexts, tokens, counts)
        return Batch(*(torch.from_numpy(array) for array in arrays))

    @staticmethod
    def gap(clip: np.ndarray, rng: np.random.Generator) -> None:
        """Put a band of bins and a few frames at their mean, in place (SpecAugment, small)."""
        mean = clip.mean()
        width = int(rng.integers(0, 10))
        first = int(rng.integers(0, 80 - width))
        clip[:, first : first + width] = mean
        length = int(rng.integers(0, 8))
        first = int(rng.integers(0, max(1, len(clip) - length)))
        clip[first : first + length] = mean


def inputs_of(waves: Sequence[np.ndarray], shape: Shape) -> Tensor:
    """Return log-mels (n, 2 S + 7, 80) of int16 waves, padded to whole chunks that end behind the last of them."""
    mels = [fbank(wave.astype(np.float32) / 32768.0) for wave in waves]
    longest = max(map(len, mels)) + TAIL_FRAMES
    width = 2 * shape.chunk * -(-(longest - LOOKAHEAD) // (2 * shape.chunk))
    padded = np.full((len(mels), width + LOOKAHEAD, 80), FLOOR, dtype=np.float32)
    for row, mel in zip(padded, mels, strict=True):
        row[: len(mel)] = mel
    return torch.from_numpy(padded)
