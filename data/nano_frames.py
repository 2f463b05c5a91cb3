"""What is said in every hidden frame of 20 ms: what the recognisers' frame heads learn from."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from nano_espeak import Sound
from nano_speech import WORDS, Utterance

HIDDEN_FRAME_S = 0.02
IGNORED = -100
N_LABELS = 3  # of a hidden frame: the phoneme, the word, and the last word before it
CHUNK_CLIPS = 400


def in_processes(job: Callable, utterances: Sequence[Utterance], n_processes: int) -> Iterator:
    """Yield job(utterance) in the order given, worked on by several processes.

    espeak-ng goes on from the state the text before left it in, so every chunk has a process of its
    own: then neither the number of processes nor their speed changes a sample.
    """
    context = multiprocessing.get_context("fork")
    with context.Pool(n_processes, torch.set_num_threads, (1,), maxtasksperchild=1) as pool:
        yield from pool.imap(job, utterances, chunksize=CHUNK_CLIPS)


def spoken_frames(
    utterance: Utterance, sounds: Sequence[Sound]
) -> tuple[list[tuple[str, int, int]], list[tuple[int, int]]]:
    """Return (phoneme, start, end) of the sounds and (start, end) of the words, in hidden frames."""

    def frame(time_s: float) -> int:
        return max(0, round((utterance.lead_s + float(time_s)) / HIDDEN_FRAME_S))

    words = []
    for position in range(len(utterance.text.split())):
        own = [sound for sound in sounds if sound.word == position and sound.name]
        words.append((frame(own[0].start_s), max(frame(own[-1].end_s), frame(own[0].start_s) + 1)))
    return [(sound.name, frame(sound.start_s), frame(sound.end_s)) for sound in sounds], words


def labels_of(
    n_frames: int, sounds: Sequence[tuple[str, int, int]], words: Sequence[tuple[int, int]], text: str, names: list[str]
) -> np.ndarray:
    """Return the three classes of each hidden frame: (n_frames, 3) uint8; adds new phonemes to the names."""
    labels = np.zeros((n_frames, N_LABELS), dtype=np.uint8)
    for name, start, end in sounds:
        if name not in names:
            names.append(name)
        labels[start:end, 0] = names.index(name)
    said = [WORDS.index(word) + 1 for word in text.split()]
    ends = [start for start, _ in words[1:]] + [n_frames] * bool(said)
    before = 0
    for word, (start, end), until in zip(said, words, ends, strict=True):
        labels[start:end, 1] = word
        labels[start:end, 2] = before
        labels[end:until, 2] = before = word
    return labels
