"""Word error rate: alignment, corpus WER or CER with S/D/I, bootstrap intervals, loops."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from nightjar.errors import BadInput
from nightjar.scoring.normalize import normalise

LOOP_NGRAM = 8  # longest repeated n-gram, in tokens
LOOP_REPEATS = 3  # least repetitions in a row
LOOP_SPAN = 8  # least tokens that the repetitions cover

MOST_CLIPS = 1_000_000  # limit of `clips_to_decide`


class Edit(NamedTuple):
    """One step of an alignment: equal, substituted, deleted or inserted."""

    op: Literal["=", "S", "D", "I"]
    reference: str | None
    hypothesis: str | None


class Counts(BaseModel, frozen=True):
    """Counts of an alignment's edits; they can be added."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields})

    @property
    def errors(self) -> int:
        """Return substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference(self) -> int:
        """Return the number of reference words: hits + substitutions + deletions."""
        return self.hits + self.substitutions + self.deletions


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Edit]:
    """Align two word sequences with the fewest edits (Levenshtein 1966; all edits cost one).

    Where several alignments are equally short, the walk back from the end takes the diagonal first, then a deletion,
    then an insertion, so that the same input always gives the same S/D/I.
    """
    cost = _costs(reference, hypothesis)
    i, j = len(reference), len(hypothesis)
    edits: list[Edit] = []
    while i or j:
        if i and j and reference[i - 1] == hypothesis[j - 1] and cost[i, j] == cost[i - 1, j - 1]:
            i, j = i - 1, j - 1
            edits.append(Edit("=", reference[i], hypothesis[j]))
        elif i and j and cost[i, j] == cost[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
            edits.append(Edit("S", reference[i], hypothesis[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            edits.append(Edit("D", reference[i], None))
        else:
            j -= 1
            edits.append(Edit("I", None, hypothesis[j]))
    return edits[::-1]


def _costs(reference: Sequence[str], hypothesis: Sequence[str]) -> NDArray[np.int32]:
    """Fill the `(n + 1, m + 1)` table of edit distances between prefixes, one row at a time."""
    ids = {word: k for k, word in enumerate({*reference, *hypothesis})}
    columns_ids = np.array([ids[word] for word in hypothesis], np.int32)
    columns = np.arange(len(hypothesis) + 1, dtype=np.int32)
    cost = np.empty((len(reference) + 1, len(hypothesis) + 1), np.int32)
    cost[0] = columns
    for i, word in enumerate(reference, 1):
        above = cost[i - 1]
        row = above + 1
        row[1:] = np.minimum(row[1:], above[:-1] + (columns_ids != ids[word]))
        # insertions run along the row: row[j] = min over k <= j of row[k] + (j - k)
        cost[i] = np.minimum.accumulate(row - columns) + columns
    return cost


def count_edits(edits: Iterable[Edit]) -> Counts:
    """Count an alignment's hits, substitutions, deletions and insertions."""
    ops = [edit.op for edit in edits]
    return Counts(
        hits=ops.count("="), substitutions=ops.count("S"), deletions=ops.count("D"), insertions=ops.count("I")
    )


def count_errors(reference: str, hypothesis: str, language: str = "en") -> Counts:
    """Count the errors of one hypothesis text after normalising both."""
    return count_edits(align(normalise(reference, language).split(), normalise(hypothesis, language).split()))


def corpus_wer(counts: Iterable[Counts]) -> float:
    """Return WER in percent: all errors over all reference words, not a mean over utterances.

    A clip without reference words (silence) adds its insertions. Raises BadInput if no clip has any.
    """
    total = sum(counts, Counts())
    if not total.reference:
        raise BadInput("the references hold no words, so there is no WER; give a test set with text")
    return 100.0 * total.errors / total.reference


def bootstrap_interval(
    errors: Sequence[int], words: Sequence[int], seed: int = 0, n: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % interval of corpus WER in percent by resampling clips (Bisani & Ney 2004).

    errors, words: one entry per clip.
    """
    if len(errors) != len(words):
        raise ValueError(f"{len(errors)} error counts for {len(words)} clips")
    if not sum(words):
        raise BadInput("the references hold no words, so there is no WER; give a test set with text")
    rates = np.concatenate(list(_resampled(np.asarray(errors), np.asarray(words), seed, n)))
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    errors_a: Sequence[int], errors_b: Sequence[int], words: Sequence[int], seed: int = 0, n: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % interval of WER a - WER b in percent points, both on the same resampled clips.

    Pairing removes the difficulty of a clip, which is most of the spread (Bisani & Ney 2004).
    """
    if len(errors_a) != len(errors_b):
        raise ValueError(f"{len(errors_a)} clips against {len(errors_b)}: not the same test set")
    return bootstrap_interval([a - b for a, b in zip(errors_a, errors_b, strict=True)], words, seed, n)


def _resampled(errors: NDArray[np.int64], words: NDArray[np.int64], seed: int, n: int) -> Iterator[NDArray[np.float64]]:
    """Yield WERs of resampled test sets in percent, a few megabytes of clip indices at a time."""
    rng = np.random.default_rng(seed)
    clips = len(words)
    rows = max(1, 2_000_000 // clips)
    for start in range(0, n, rows):
        picks = rng.integers(0, clips, (min(rows, n - start), clips))
        spoken = words[picks].sum(axis=1)
        worded = spoken > 0  # a draw of silent clips alone has no WER
        yield 100.0 * errors[picks].sum(axis=1)[worded] / spoken[worded]


def clips_to_decide(estimate: float, interval: tuple[float, float], budget: float, clips: int) -> int:
    """Estimate how many clips would bring the interval's near end to the budget; more than `clips`.

    The half-width shrinks with 1 / sqrt(clips) while the estimate stays. The answer is MOST_CLIPS at most, as for an
    estimate on the budget itself.
    """
    distance = abs(estimate - budget)
    reach = interval[1] - estimate if estimate <= budget else estimate - interval[0]
    if distance * math.sqrt(MOST_CLIPS) <= max(reach, 0.0) * math.sqrt(clips):
        return max(MOST_CLIPS, clips + 1)
    return max(clips + 1, math.ceil(clips * (reach / distance) ** 2))


def looping(tokens: Sequence[object]) -> bool:
    """Tell whether a hypothesis is stuck in a loop: an n-gram repeated in a row.

    An n-gram, n from 1 to 8, at least 3 times in a row and over at least 8 tokens: one token 8 times, two 4 times,
    three to eight 3 times. Anywhere, not only at the end, because decoders can leave a loop. No LibriSpeech reference
    text matches, in words or in GPT-2 tokens.
    """
    for n in range(1, LOOP_NGRAM + 1):
        needed = max(LOOP_REPEATS * n, LOOP_SPAN) - n
        run = 0
        for i in range(n, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - n] else 0
            if run >= needed:
                return True
    return False
