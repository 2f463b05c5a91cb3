"""Alignment against brute force, known facts of the bootstrap, loops that people never speak."""

import os
import time
import warnings
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from nightjar.errors import BadInput
from nightjar.scoring.normalize import error_unit, normalise
from nightjar.scoring.wer import (
    Counts,
    align,
    bootstrap_interval,
    clips_to_decide,
    corpus_wer,
    count_edits,
    count_errors,
    looping,
    paired_bootstrap,
)
from nightjar.speech.manifest import load_speech
from tests.conftest import need

SPEECH = Path(os.environ.get("NIGHTJAR_DATA", Path(__file__).parents[4] / "shared" / "data")) / "librispeech"


def distance(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Levenshtein distance straight from its definition."""

    @cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return of(len(one), len(other))


# -- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language"),
    [
        ("MISTER QUILTER ISN'T", "Mr. Quilter is not", "en"),
        ("TWENTY ONE DOLLARS", "$21", "en"),
        ("THE COLOUR", " the  color!", "en-GB"),
        ("UM HMM WELL", "well", "English"),
        ("Grüß Gott", "grüß gott.", "de"),
        ("對我做了介紹", "對我，做了 介紹。", "zh"),
        ("對我做了介紹", "对我做了介绍", "Chinese"),
    ],
)
def test_what_is_said_alike_is_no_error(reference: str, hypothesis: str, language: str) -> None:
    assert count_errors(reference, hypothesis, language).errors == 0


def test_languages_without_spaces_are_scored_in_characters() -> None:
    assert [error_unit(code) for code in ("zh", "ja", "th", "lo", "my", "yue", "zh-TW", "Japanese")] == [
        "character"
    ] * 8
    assert [error_unit(code) for code in ("en", "en_US", "de", "ko")] == ["word"] * 4
    assert normalise("對我，做", "zh") == "对 我 做"
    assert normalise("對我，做", "zh", simplified=False) == "對 我 做"
    assert normalise("對我，做", "ja") == "對 我 做"  # Japanese is written in its own characters
    counts = count_errors("大家如果", "大家加果", "zh")
    assert (counts.hits, counts.substitutions, counts.reference) == (3, 1, 4)


def test_a_mistyped_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no language 'enlish': pass --language auto, a code .*de.*en.*zh"):
        normalise("a", "enlish")


# -- alignment ---------------------------------------------------------------------------------


def test_alignments_are_shortest_and_replay_to_the_hypothesis() -> None:
    words = [seq for n in range(5) for seq in product("abc", repeat=n)]
    rng = np.random.default_rng(0)
    pairs = [(words[i], words[j]) for i, j in rng.integers(0, len(words), (1_500, 2))]
    pairs += [(tuple(rng.choice(list("abcd"), 25)), tuple(rng.choice(list("abcd"), 31))) for _ in range(30)]
    for reference, hypothesis in pairs:
        edits = align(reference, hypothesis)
        assert count_edits(edits).errors == distance(reference, hypothesis)
        assert tuple(e.reference for e in edits if e.op != "I") == reference
        assert tuple(e.hypothesis for e in edits if e.op != "D") == hypothesis
        assert all((e.reference == e.hypothesis) == (e.op == "=") for e in edits)
        assert count_edits(edits).reference == len(reference)


def test_ties_are_broken_the_same_way_every_time() -> None:
    assert [edit.op for edit in align("ab", "b")] == ["D", "="]
    assert [edit.op for edit in align("ab", "ba")] == ["S", "S"]
    assert [edit.op for edit in align(["a"], [])] == ["D"]
    assert [edit.op for edit in align([], ["a"])] == ["I"]
    assert align([], []) == []


def test_corpus_wer_is_over_all_words_and_never_a_mean_of_clips() -> None:
    short = count_errors("no", "yes")  # 100 %
    long = count_errors("one two three four five six seven eight nine", "one two three four five six seven eight nine")
    assert corpus_wer([short]) == 100.0
    assert corpus_wer([short, Counts(hits=9)]) == 10.0  # the mean over clips would be 50 %
    assert long.errors == 0
    assert corpus_wer([Counts(hits=4), count_errors("", "thanks for watching")]) == 75.0  # silence adds insertions
    assert corpus_wer([count_errors("a b c d", "a")]) == 75.0  # deletions count: the reference is never cut
    with pytest.raises(BadInput, match="no words"):
        corpus_wer([count_errors("", "thanks")])
    with pytest.raises(BadInput, match="no words"):
        corpus_wer([])


def test_counts_add_up() -> None:
    total = Counts(hits=1, substitutions=2) + Counts(deletions=3, insertions=4, hits=5)
    assert total == Counts(hits=6, substitutions=2, deletions=3, insertions=4)
    assert (total.errors, total.reference) == (9, 11)


# -- intervals ---------------------------------------------------------------------------------


def test_identical_systems_differ_by_nothing() -> None:
    errors, words = [0, 3, 1, 7], [10, 12, 0, 9]
    assert paired_bootstrap(errors, errors, words) == (0.0, 0.0)


def test_intervals_hold_the_estimate_repeat_with_the_seed_and_mirror() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(5, 30, 200)
    a, b = rng.binomial(words, 0.10), rng.binomial(words, 0.08)
    lo, hi = paired_bootstrap(a.tolist(), b.tolist(), words.tolist())
    assert lo < 100 * (a.sum() - b.sum()) / words.sum() < hi
    assert (lo, hi) == paired_bootstrap(a.tolist(), b.tolist(), words.tolist())
    assert (lo, hi) != paired_bootstrap(a.tolist(), b.tolist(), words.tolist(), seed=1)
    back = paired_bootstrap(b.tolist(), a.tolist(), words.tolist())
    assert back == pytest.approx((-hi, -lo))
    one = bootstrap_interval(a.tolist(), words.tolist())
    assert one[0] < 100 * a.sum() / words.sum() < one[1]


def test_pairing_narrows_the_interval_of_systems_that_err_alike() -> None:
    rng = np.random.default_rng(3)
    words = np.full(200, 20)
    hard = rng.binomial(words, rng.beta(1, 9, 200))
    lo, hi = paired_bootstrap((hard + (rng.random(200) < 0.05)).tolist(), hard.tolist(), words.tolist())
    alone = bootstrap_interval(hard.tolist(), words.tolist())
    assert hi - lo < 0.4 * (alone[1] - alone[0])


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        words = rng.integers(5, 30, 150)
        a, b = rng.binomial(words, 0.12), rng.binomial(words, 0.10)
        lo, hi = paired_bootstrap(a.tolist(), b.tolist(), words.tolist(), seed=trial, n=1_000)
        covered += lo <= 2.0 <= hi
    assert 180 <= covered <= 199  # 95 % of 200 within about three standard deviations


def test_silent_clips_do_not_break_the_interval() -> None:
    lo, hi = bootstrap_interval([1, 0, 2], [0, 0, 10])  # many draws hold no word at all
    assert np.isfinite([lo, hi]).all()
    with pytest.raises(BadInput, match="no words"):
        bootstrap_interval([1, 2], [0, 0])
    with pytest.raises(ValueError, match="not the same test set"):
        paired_bootstrap([1, 2], [1], [3, 4])


def test_217_clips_take_well_under_a_second() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(2, 40, 217).tolist()
    began = time.perf_counter()
    paired_bootstrap(rng.integers(0, 3, 217).tolist(), rng.integers(0, 3, 217).tolist(), words)
    assert time.perf_counter() - began < 1.0


def test_clips_to_decide_grows_with_the_square() -> None:
    assert clips_to_decide(0.5, (-0.5, 1.5), 1.0, 100) == 400  # half-width 1.0, distance 0.5
    assert clips_to_decide(1.5, (0.5, 2.5), 1.0, 100) == 400  # and from the other side
    assert clips_to_decide(0.9, (0.0, 1.01), 1.0, 100) == 122
    assert clips_to_decide(0.0, (0.0, 1.0), 1.0, 100) == 101  # never fewer than were not enough
    assert clips_to_decide(1.0, (0.0, 2.0), 1.0, 100) == 1_000_000  # on the budget: never


def test_the_promised_number_of_clips_decides() -> None:
    rng = np.random.default_rng(5)

    def interval(clips: int) -> tuple[float, tuple[float, float]]:
        words = np.full(clips, 20)
        a, b = rng.binomial(words, 0.104), rng.binomial(words, 0.10)
        return 100 * (a.sum() - b.sum()) / words.sum(), paired_bootstrap(a.tolist(), b.tolist(), words.tolist())

    estimate, (lo, hi) = interval(200)
    assert lo <= 1.0 < hi
    _, (_, hi) = interval(2 * clips_to_decide(0.4, (lo - estimate + 0.4, hi - estimate + 0.4), 1.0, 200))
    assert hi <= 1.0


# -- loops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 9))
def test_a_repeated_ngram_is_a_loop_at_the_end_in_the_middle_and_cut_short(n: int) -> None:
    start, gram = ["so", "he", "said"], [f"w{i}" for i in range(n)]
    times = max(3, -(-8 // n))
    assert looping(start + gram * times)
    assert looping(start + gram * times + ["the", "end"])
    assert looping(start + gram * 40 + gram[: n // 2])
    assert not looping(start + gram * (times - 1))
    assert looping(list(range(50)) + [7, 8, 9] * 5)  # token ids as well


@pytest.mark.parametrize(
    "said",
    ["", "no", "no no no no", "very very very good", "one two one two", "ha ha ha ha ha", "knock knock who is there"],
)
def test_what_people_say_is_no_loop(said: str) -> None:
    assert not looping(said.split())


def test_no_librispeech_reference_loops_in_words_or_gpt2_tokens() -> None:
    need("shared", SPEECH.is_dir(), "real speech: set NIGHTJAR_DATA to a folder with librispeech/")
    from whisper.tokenizer import get_tokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # whisper leaves gpt2.tiktoken open
        encode = get_tokenizer(multilingual=False).encode
    clips = load_speech(SPEECH / "evaluation.jsonl") + load_speech(SPEECH / "calibration.jsonl")
    texts = [clip.text for clip in clips] + [clip.text.lower() for clip in clips]
    assert not [text for text in texts if looping(text.split()) or looping(normalise(text).split())]
    assert not [text for text in texts if looping(encode(" " + text))]
