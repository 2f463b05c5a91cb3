"""Turn spoken utterances into log-mels with what is said in every frame, and draw batches."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from nano_frames import IGNORED, N_LABELS, in_processes, labels_of, spoken_frames
from nano_speech import MAX_SECONDS, MAX_WORDS, WORDS, Utterance, in_noise, speak
from torch import Tensor
from whisper.tokenizer import get_tokenizer

N_FRAMES = 1_000  # of 10 ms: the 10 s the recogniser hears
SILENCE_TEXT = "."  # stock SuppressBlank forbids an empty answer; the normaliser drops a full stop
FLOOR_RANGE = (-1.5, -1.1)  # the padding value of clips from about -51 to -35 dBFS
MEL_TAIL_FRAMES = 3  # enough zeros for one frame that hears nothing but padding
LABELLED_TAIL_FRAMES = 15  # of padding after a clip; more would say the same
MAX_LATE_FRAMES = 150  # of silence before a clip, so that words are heard anywhere


@dataclass(frozen=True)
class Heard:
    """Hold the log-mel of one utterance, its sounds and its words, in hidden frames of 20 ms."""

    mel: np.ndarray  # (n_frames, 80) float16, n_frames even
    sounds: list[tuple[str, int, int]]  # phoneme, start, end
    words: list[tuple[int, int]]  # start, end


@dataclass(frozen=True)
class Corpus:
    """Hold log-mels end to end, with where each clip starts and what is said when."""

    mels: np.ndarray  # (n_frames_total, 80) float16
    labels: np.ndarray  # (n_frames_total / 2, 3) uint8; 0 is silence or no word yet
    starts: np.ndarray  # (n_clips + 1,) int64, in frames
    floors: np.ndarray  # (n_clips,) float32: the value stock padding has in that clip
    spans: np.ndarray  # (n_clips, MAX_WORDS + 1, 2) int64: hidden frames of the words and the end
    texts: list[str]
    sounds: list[str]  # names of the phonemes; the first is silence

    @property
    def n_frames(self) -> np.ndarray:
        """Return the length of each clip in frames of 10 ms."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Batch:
    """Hold what one training step needs."""

    mel: Tensor  # (n, 80, T)
    labels: Tensor  # (n, T / 2, 3)
    rows: Tensor  # (n, L) what the decoder reads
    target: Tensor  # (n, L) what it must say next
    spans: Tensor  # (n, L, 2) when that is said, in hidden frames

    def to(self, device: str) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def mel_of(samples: np.ndarray) -> np.ndarray:
    """Return the stock log-mel of int16 samples: (n_frames, 80) float16, ending in padding.

    Whisper clamps relative to the loudest bin of the clip, so the padding of a clip is one
    constant, which the last frame holds.
    """
    audio = torch.from_numpy(samples.astype(np.float32) / 32768.0)
    n_frames = len(audio) // whisper.audio.HOP_LENGTH + MEL_TAIL_FRAMES
    n_frames += n_frames % 2
    audio = F.pad(audio, (0, n_frames * whisper.audio.HOP_LENGTH - len(audio)))
    return whisper.log_mel_spectrogram(audio).T.half().contiguous().numpy()


def hear(utterance: Utterance) -> Heard:
    """Speak an utterance and return its log-mel with what is said when."""
    speech = speak(utterance)
    return Heard(mel_of(in_noise(utterance, speech.samples)), *spoken_frames(utterance, speech.sounds))


def speak_corpus(utterances: list[Utterance], folder: Path, n_processes: int) -> Corpus:
    """Speak the training utterances to log-mels in a folder, or find them there."""
    mels_file, labels_file, index_file = folder / "mels.f16", folder / "labels.u8", folder / "index.json"
    wanted = [asdict(u) for u in utterances]
    index = json.loads(index_file.read_text()) if index_file.exists() else {}
    if index.get("utterances") != wanted:
        began = time.monotonic()
        ends, spans, kept, names = [0], [], [], [""]
        with mels_file.open("wb") as mels_out, labels_file.open("wb") as labels_out:
            for n, heard in enumerate(in_processes(hear, utterances, n_processes)):
                if len(heard.mel) <= 100 * MAX_SECONDS:
                    heard.mel.tofile(mels_out)
                    text = utterances[n].text
                    labels_of(len(heard.mel) // 2, heard.sounds, heard.words, text, names).tofile(labels_out)
                    ends.append(ends[-1] + len(heard.mel))
                    last = heard.words[-1][1] if heard.words else 0
                    filler = [(last, last + LABELLED_TAIL_FRAMES)] * (MAX_WORDS + 1 - len(heard.words))
                    spans.append([*heard.words, *filler])
                    kept.append(n)
                if n % 2000 == 1999:
                    seconds = time.monotonic() - began
                    print(f"spoke {n + 1} of {len(utterances)} clips in {seconds:.0f} s", flush=True)
        index = {"utterances": wanted, "ends": ends, "spans": spans, "kept": kept, "names": names}
        index_file.write_text(json.dumps(index))
    mels = np.fromfile(mels_file, dtype=np.float16).reshape(-1, 80)
    labels = np.fromfile(labels_file, dtype=np.uint8).reshape(-1, N_LABELS)
    starts = np.array(index["ends"])
    floors = mels[starts[1:] - 1, 0].astype(np.float32)
    texts = [utterances[i].text for i in index["kept"]]
    return Corpus(mels, labels, starts, floors, np.array(index["spans"]), texts, index["names"])


class Vocabulary:
    """Map the few tokens the words need to rows of a small embedding, and back."""

    def __init__(self, n_vocab: int) -> None:
        """Collect the tokens of the words, of silence, of the prompt and of the end."""
        self.tokenizer = get_tokenizer(False)
        self.prompt = list(self.tokenizer.sot_sequence_including_notimestamps)
        pieces = {t for word in WORDS for t in self.tokenizer.encode(f" {word}")}
        pieces |= set(self.tokenizer.encode(SILENCE_TEXT))
        self.tokens = [*sorted(pieces), self.tokenizer.eot, *self.prompt]
        self.row_of = {token: row for row, token in enumerate(self.tokens)}
        self.n_unused = n_vocab - len(self.tokens)

    def lines(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Return the rows the decoder reads, those it must say next, and the words those are in."""
        words = [f" {word}" for word in text.split()] or [SILENCE_TEXT]
        pieces = [(self.row_of[t], i) for i, word in enumerate(words) for t in self.tokenizer.encode(word)]
        said = [row for row, _ in pieces]
        unsaid = len(self.prompt) - 1
        return (
            [self.row_of[token] for token in self.prompt] + said,
            [IGNORED] * unsaid + said + [self.row_of[self.tokenizer.eot]],
            [0] * unsaid + [i for _, i in pieces] + [len(text.split())],
        )

    def table(self, corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows (n, L), targets (n, L) and spans (n, L, 2) of every clip."""
        lines = [self.lines(text) for text in corpus.texts]
        longest = max(len(line[0]) for line in lines)
        rows = np.zeros((len(lines), longest), dtype=np.int64)
        target = np.full((len(lines), longest), IGNORED, dtype=np.int64)
        spans = np.zeros((len(lines), longest, 2), dtype=np.int64)
        for i, (read, say, word) in enumerate(lines):
            rows[i, : len(read)], target[i, : len(say)] = read, say
            spans[i, : len(word)] = corpus.spans[i, word]
        return rows, target, spans


class Batches:
    """Draw batches of clips of like length; a batch follows from the seed and the step alone."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, seed: int) -> None:
        """Sort the clips by length, all of them and those of one or two words."""
        self.corpus, self.seed = corpus, seed
        self.rows, self.target, self.spans = vocabulary.table(corpus)
        n_words = np.array([len(text.split()) for text in corpus.texts])
        self.by_length = np.argsort(corpus.n_frames, kind="stable")
        short = (n_words[self.by_length] >= 1) & (n_words[self.by_length] <= 2)
        self.short_by_length = self.by_length[short]

    def draw(self, step: int, max_frames: int, *, short: bool = False, full: bool = False) -> Batch:
        """Return the batch of a step: of short clips, or padded to the full 10 s, if so told."""
        rng = np.random.default_rng([self.seed, 100, step])
        order = self.short_by_length if short else self.by_length
        last = int(rng.integers(len(order)))
        longest = int(self.corpus.n_frames[order[last]])
        spare = int(rng.integers(10, 151)) if rng.random() < 0.5 else int(rng.integers(0, 41))
        late = full or spare > 40  # else there is little room to begin late in
        if full or rng.random() < 0.05:
            spare = N_FRAMES
        width = min(N_FRAMES, longest + spare + (longest + spare) % 2)
        n_clips = max(1, max_frames // width)
        chosen = order[max(0, last + 1 - n_clips) : last + 1]
        return self.collate(chosen, rng, width, latest=MAX_LATE_FRAMES if late else 0)

    def collate(self, chosen: np.ndarray, rng: np.random.Generator, width: int, *, latest: int) -> Batch:
        """Return clips padded as stock pads, begun a little late, with random level, tilt and shift."""
        corpus = self.corpus
        mels = np.empty((len(chosen), width, 80), dtype=np.float32)
        labels = np.full((len(chosen), width // 2, N_LABELS), IGNORED, dtype=np.int64)
        shifts = np.zeros(len(chosen), dtype=np.int64)
        tail = width if rng.random() < 0.1 else LABELLED_TAIL_FRAMES
        bins = np.linspace(-1, 1, 80, dtype=np.float32)
        for i, index in enumerate(chosen):
            start, end, floor = corpus.starts[index], corpus.starts[index + 1], corpus.floors[index]
            length = end - start
            shift = int(rng.integers(0, min(latest, width - length) // 2 + 1))
            clip = corpus.mels[start:end].astype(np.float32) + rng.uniform(-0.1, 0.1) * bins
            if rng.random() < 0.5:  # another throat: the spectrum moves by a bin or two
                clip = clip[:, np.clip(np.arange(80) + rng.integers(-2, 3), 0, 79)]
            # Gain only shifts a log-mel: draw the level afresh, where the floor is 80 dB below the top.
            level = rng.uniform(*FLOOR_RANGE)
            mels[i] = level
            mels[i, 2 * shift : 2 * shift + length] = np.maximum(clip - floor, 0) + level
            own = corpus.labels[start // 2 : end // 2]
            labels[i, max(0, shift - LABELLED_TAIL_FRAMES) : shift] = 0
            labels[i, shift : shift + len(own)] = own
            labels[i, shift + len(own) : shift + len(own) + tail] = (0, 0, own[-1, 2])
            shifts[i] = shift
        longest = int((self.target[chosen] != IGNORED).any(0).nonzero()[0].max()) + 1
        return Batch(
            torch.from_numpy(mels.transpose(0, 2, 1).copy()),
            torch.from_numpy(labels),
            torch.from_numpy(self.rows[chosen, :longest]),
            torch.from_numpy(self.target[chosen, :longest]),
            torch.from_numpy(self.spans[chosen, :longest] + shifts[:, None, None]),
        )
