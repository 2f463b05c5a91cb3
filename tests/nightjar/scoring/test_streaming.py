"""Errors by chunk, times of chunks, and drift between two streams."""

from pathlib import Path

import numpy as np
import pytest

from nightjar.scoring.drift import CLEAN_DB, Drift, SnrCurve, agreement, compare_streams, worst_by_kind
from nightjar.scoring.score import counts_by_stratum, score
from nightjar.scoring.streaming import chunk_times, word_chunks
from nightjar.scoring.verdict import Budgets
from nightjar.scoring.wer import align
from nightjar.speech.manifest import Clip

WORDS = {1: "one", 2: "two", 3: "three", 4: "twenty"}


def said(tokens: list[int]) -> list[str]:
    text = " ".join(WORDS[token] for token in tokens)
    return text.replace("twenty one", "21").split()  # as the English normaliser joins numbers


def test_a_word_is_where_the_text_first_had_it() -> None:
    assert word_chunks([1, 0, 0, 0, 2, 3, 0, 0], 2, said) == [0, 2, 2]
    assert word_chunks([0, 0, 4, 0, 1, 0, 2, 0], 2, said) == [1, 3]  # "twenty", then "21", then "two"
    assert word_chunks([], 2, said) == []


def test_errors_count_in_their_chunks() -> None:
    edits = align(["one", "two", "three", "four"], ["one", "too", "three", "five", "six"])
    found = counts_by_stratum(edits, [0, 0, 1, 20, 21])
    assert found["first"].hits == 1
    assert found["first"].substitutions == 1
    assert found["second"].hits == 1
    assert found["later"].errors == 2
    gone = counts_by_stratum(align(["one", "two"], ["one"]), [4])
    assert gone["5th to 8th"].deletions == 1  # where the word before it is


def test_a_score_says_which_chunks_err_and_whether_time_is_kept() -> None:
    clips = [Clip(id=n, audio=Path(), text="red green blue", duration_s=2, speaker="s") for n in ("a", "b")]
    common = {"chunk_s": 0.64, "audio_s": 2.0, "seconds": {"total": 0.1}}
    lines = [
        {"id": "a", "text": "red green blue", "word_chunks": [0, 1, 2], "chunk_ms": [10.0, 20.0, 30.0], **common},
        {"id": "b", "text": "red green brown", "word_chunks": [0, 1, 2], "chunk_ms": [10.0, 700.0], **common},
    ]
    found = score("binary", "device", clips, lines)
    assert {each.name: each.counts.errors for each in found.by_chunk} == {"first": 0, "second": 0, "3rd to 4th": 1}
    third = next(each for each in found.by_chunk if each.name == "3rd to 4th")
    assert third.wer == 50.0
    assert third.interval == (0.0, 100.0)
    assert found.chunk_times is not None
    assert (found.chunk_times.p50_ms, found.chunk_times.lasts_ms, found.chunk_times.late) == (20.0, 640.0, 1)
    assert score("binary", "vendor-simulator", clips, lines).chunk_times is None  # its seconds say nothing
    whole = [{"id": clip.id, "text": "red green blue"} for clip in clips]
    assert score("stock", "host", clips, whole).by_chunk == ()


def test_real_time_is_kept_where_most_chunks_are_done_in_time() -> None:
    assert chunk_times([10.0] * 99 + [900.0], 0.64).real_time
    assert not chunk_times([10.0] * 90 + [900.0] * 10, 0.64).real_time


@pytest.fixture
def streams(tmp_path: Path) -> tuple[Path, Path]:
    """Two harvests of one stream of 8 chunks of 2 rows; the second's state errs more from chunk to chunk."""
    rng = np.random.default_rng(0)
    rows, state = rng.normal(size=(16, 400)), rng.normal(size=(8, 3, 500))
    for folder, grow in (("a", 0.0), ("b", 0.01)):
        (tmp_path / folder).mkdir()
        noise = grow * (1 + np.arange(8))[:, None, None] * rng.normal(size=state.shape)
        np.save(tmp_path / folder / "s.encoder_out.npy", (rows + grow * rng.normal(size=rows.shape)).astype(np.float16))
        np.save(tmp_path / folder / "s.new_cached_avg_0.npy", (state + noise).astype(np.float16))
        np.save(tmp_path / folder / "s.new_cached_len_0.npy", 32 * (1 + np.arange(8)).reshape(8, 1))
    return tmp_path / "a" / "s", tmp_path / "b" / "s"


def test_drift_is_what_grows_from_the_first_quarter_to_the_last(streams: tuple[Path, Path]) -> None:
    names = ["encoder_out", "new_cached_avg_0", "new_cached_len_0"]
    found = compare_streams(*streams, names, count=8, chunks=range(8), rows_a_chunk=2)
    assert found["encoder_out"].first_db == pytest.approx(40, abs=1)
    assert found["encoder_out"].last_db == pytest.approx(40, abs=1)
    grown = found["new_cached_avg_0"]
    assert grown.snr_db == tuple(sorted(grown.snr_db, reverse=True))
    assert grown.first_db - grown.last_db == pytest.approx(20 * np.log10(7.5 / 1.58), abs=0.7)
    assert found["new_cached_len_0"].last_db == 200  # counts are as they are
    assert worst_by_kind(found)["cached_avg"] == ("new_cached_avg_0", grown)


def drifting(first_db: float, last_db: float) -> Drift:
    course = SnrCurve(snr_db=(first_db, last_db), first_db=first_db, last_db=last_db)
    return Drift(
        seconds=60, tier="host", count=94, chunks=(0, 93), output="out", courses={"out": course}, agree=((1, 1),) * 4
    )


def test_what_nobody_can_hear_does_not_drift() -> None:
    assert drifting(90, 60).grown_db == 0
    assert drifting(50, 38).grown_db == CLEAN_DB - 38
    assert drifting(20, 22).grown_db == 0


def test_drift_is_a_gate_of_the_verdict() -> None:
    from nightjar.scoring.verdict import judge

    clips = [Clip(id=n, audio=Path(), text="one two", duration_s=2, speaker="s") for n in ("a", "b", "c")]
    lines = [{"id": clip.id, "text": clip.text, "tokens": [5, 6], "agree": [2, 2]} for clip in clips]
    scores = [score(name, "host", clips, lines) for name in ("stock", "float", "binary")]
    for drift, outcome in ((drifting(30, 29), "PASS"), (drifting(30, 20), "FAIL")):
        verdict = judge(*scores, budgets=Budgets(max_silence_words=0), drift=drift)
        gate = next(gate for gate in verdict.gates if gate.name == "drift")
        assert gate.outcome == outcome
        assert "30.0 to" in gate.sentence
        assert "60 s" in gate.sentence
    assert all(gate.name != "drift" for gate in judge(*scores).gates)


def test_agreement_is_counted_by_quarter() -> None:
    expected = [5, 0, 0, 6, 0, 7, 0, 0]
    obtained = [5, 0, 6, 0, 0, 7, 8, 0]
    assert agreement(expected, obtained) == ((1, 1), (0, 2), (1, 1), (0, 1))
