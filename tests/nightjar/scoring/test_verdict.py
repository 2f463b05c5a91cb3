"""Scores from hypothesis lines, and every way a port can pass, fail or stay undecided."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.errors import BadInput, SessionFailed
from nightjar.scoring.score import Score, Tier, score, score_silence
from nightjar.scoring.verdict import Budgets, Gate, Verdict, judge
from nightjar.speech.manifest import Clip

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]
QUIET = [{"id": "probe", "text": ""}]
SILENCE = score_silence(QUIET, QUIET)
Line = dict[str, Any]


def make_clips(n: int = 40, speakers: int = 4) -> list[Clip]:
    """Ten words a clip, in an order of its own, so that clips differ."""
    rng = np.random.default_rng(0)
    return [
        Clip(
            id=f"clip-{i:04d}",
            audio=Path(f"{i}.wav"),
            text=" ".join(rng.permutation(WORDS)),
            duration_s=1.0 + i % 30,
            speaker=f"s{i % speakers}",
        )
        for i in range(n)
    ]


def lines_of(clips: list[Clip], wrong: dict[int, int] | None = None) -> list[Line]:
    """Write perfect lines, but for `wrong[i]` substituted words in clip i."""
    lines = []
    for i, clip in enumerate(clips):
        words = clip.text.split()
        words[: (wrong or {}).get(i, 0)] = ["zulu"] * (wrong or {}).get(i, 0)
        seconds = {"features": 0.1, "encoder": 0.2 * clip.duration_s, "total": 0.5 * clip.duration_s}
        lines.append(
            {
                "id": clip.id,
                "text": " ".join(words),
                "tokens": list(range(10)),
                "steps": 11,
                "capped": False,
                "agree": [11, 11],
                "seconds": seconds,
                "audio_s": clip.duration_s,
                "reference": clip.text,
            }
        )
    return lines


def verdict_of(
    binary: list[Line],
    clips: list[Clip],
    expected: list[Line] | None = None,
    stock: list[Line] | None = None,
    budgets: Budgets | None = None,
    **how: Any,
) -> Verdict:
    perfect = lines_of(clips)
    return judge(
        score("stock", "host", clips, stock or perfect),
        score("float", "host", clips, expected or perfect),
        score("binary", "host", clips, binary),
        budgets,
        how.get("silence", SILENCE),
    )


def gate(verdict: Verdict, name: str) -> Gate:
    (found,) = [gate for gate in verdict.gates if gate.name == name]
    return found


# -- scores ------------------------------------------------------------------------------------


def test_score_counts_errors_over_all_words() -> None:
    clips = make_clips(4)
    lines = lines_of(clips, {0: 2})
    lines[1]["text"] = ""
    lines[2]["text"] += " extra"
    lines[3]["capped"] = True
    lines[3]["agree"] = None
    made = score("float", "host", clips[::-1], lines)
    assert (made.counts.substitutions, made.counts.deletions, made.counts.insertions) == (2, 10, 1)
    assert made.wer == pytest.approx(100 * 13 / 40)
    assert made.interval[0] <= made.wer <= made.interval[1]
    assert (made.empty, made.looping, made.capped) == (1, 0, 1)
    assert made.agree == (33, 33)
    assert [clip.id for clip in made.clips] == [clip.id for clip in clips]
    assert made.clips[3].agree is None
    assert Score.model_validate_json(made.model_dump_json()) == made


def test_rtf_is_per_part_and_whole_and_null_where_seconds_mean_nothing() -> None:
    clips = make_clips()
    tiers: tuple[Tier, ...] = ("device", "host", "vendor-simulator", "stand-in")
    rtf = {tier: score("binary", tier, clips, lines_of(clips)).rtf for tier in tiers}
    assert rtf["vendor-simulator"] is None
    assert rtf["stand-in"] is None
    for tier in ("device", "host"):
        found = rtf[tier]
        assert found is not None
        assert found["total"].p50 == pytest.approx(0.5)
        assert found["encoder"].p95 == pytest.approx(0.2)
        assert found["features"].p50 < found["features"].p95
    untimed = [{"id": line["id"], "text": line["text"]} for line in lines_of(clips)]
    assert score("stock", "host", clips, untimed).rtf is None


def test_every_clip_is_scored_or_none() -> None:
    clips = make_clips(3)
    lines = lines_of(clips)
    with pytest.raises(SessionFailed, match=r"binary: no hypothesis for 1 of 3 clips \(clip-0001\)") as caught:
        score("binary", "host", clips, [lines[0], lines[2]])
    assert caught.value.exit_code == 4  # a session that ended early: run it again
    with pytest.raises(SessionFailed, match="two different hypotheses for clip-0000"):
        score("binary", "host", clips, [*lines, lines[0] | {"text": "other"}])
    with pytest.raises(SessionFailed, match=r"hypothesis 1: text: "):
        score("binary", "host", clips, [{"id": "clip-0000"}, *lines])
    with pytest.raises(SessionFailed, match=r"hypothesis 1.*agree"):
        score("binary", "host", clips, [lines[0] | {"agree": [12, 11]}, *lines[1:]])
    with pytest.raises(BadInput, match="no clips"):
        score("binary", "host", [], lines)
    assert len(score("binary", "host", clips[:2], [*lines, lines[0]]).clips) == 2  # others' and repeated lines


def test_a_silent_clip_is_scored_and_rightly_empty() -> None:
    clips = [*make_clips(2), Clip(id="quiet", audio=Path(), text="", duration_s=5, speaker=None)]
    lines = [*lines_of(clips[:2]), {"id": "quiet", "text": "Thanks for watching!"}]
    made = score("binary", "host", clips, lines)
    assert made.wer == pytest.approx(100 * 3 / 20)
    lines[-1]["text"] = " [BLANK_AUDIO] "
    quiet = score("binary", "host", clips, lines)
    assert (quiet.wer, quiet.empty) == (0.0, 0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("and so and so and so and so and so", []),
        ("one one one one one one one one one", []),  # the normaliser makes one number of these
        ("fine words", [5, 6, 7] * 3),
    ],
)
def test_loops_are_seen_in_words_and_in_tokens(text: str, tokens: list[int]) -> None:
    clips = make_clips(2)
    lines = lines_of(clips)
    lines[0] |= {"text": text, "tokens": tokens}
    assert score("binary", "host", clips, lines).looping == 1


def test_characters_are_counted_where_the_language_wants_it() -> None:
    clips = [Clip(id=i, audio=Path(), text="大家如果", duration_s=2, speaker=None) for i in "ab"]
    lines = [{"id": "a", "text": "大家加果"}, {"id": "b", "text": "大家如果。"}]
    made = score("binary", "host", clips, lines, "zh")
    assert (made.unit, made.wer) == ("character", 12.5)
    verdict = judge(made, made, made)
    assert verdict.unit == "character"
    assert gate(verdict, "delta_wer").sentence.startswith("CER")


# -- the WER gates -----------------------------------------------------------------------------


def test_clips_of_several_languages_are_each_scored_in_their_own() -> None:
    """With "auto" the language is that of the clip, which the float graphs detected; Chinese has a raw rate too."""
    english, chinese = (
        Clip(id=i, audio=Path(), text=text, duration_s=1, speaker=None, language=language)
        for i, text, language in (("a", "red green blue", "en"), ("b", "對我做了", "zh"))
    )
    lines = [{"id": "a", "text": "red green black"}, {"id": "b", "text": "对我做了"}]
    both = score("binary", "host", [english, chinese], lines, "auto")
    assert (both.unit, both.counts.reference, both.counts.errors) == ("word or character", 7, 1)
    assert both.wer == pytest.approx(100 / 7)
    assert both.raw_wer == pytest.approx(200 / 7)  # one of the four characters has a simplified form
    alone = score("binary", "host", [english], lines[:1], "auto")
    assert (alone.unit, alone.raw_wer) == ("word", None)


def test_a_port_that_hears_the_same_passes_every_gate() -> None:
    clips = make_clips()
    verdict = verdict_of(lines_of(clips), clips)
    assert verdict.outcome == "PASS"
    assert (verdict.delta_wer, verdict.interval, verdict.wer) == (0.0, (0.0, 0.0), 0.0)
    names = ["delta_wer", "recipe_loss", "new_empty", "new_looping", "new_capped", "silence", "agreement"]
    assert [gate.name for gate in verdict.gates] == names
    assert {gate.outcome for gate in verdict.gates} == {"PASS"}
    assert all(gate.sentence for gate in verdict.gates)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_clear_loss_fails_and_a_clear_gain_passes() -> None:
    clips = make_clips()
    worse = lines_of(clips, dict.fromkeys(range(40), 1))  # one word in ten, in every clip: 10 points, no spread
    verdict = verdict_of(worse, clips)
    assert verdict.outcome == "FAIL"
    assert verdict.delta_wer == pytest.approx(10)
    assert gate(verdict, "delta_wer").clips_needed is None
    better = verdict_of(lines_of(clips), clips, expected=worse, stock=worse)
    assert better.delta_wer == pytest.approx(-10)
    assert better.outcome == "PASS"


def test_a_loss_of_exactly_the_budget_passes() -> None:
    clips = make_clips()
    worse = lines_of(clips, dict.fromkeys(range(40), 1))
    exactly = verdict_of(worse, clips, budgets=Budgets(max_delta_wer=10.0))
    assert exactly.interval == pytest.approx((10, 10))
    assert exactly.outcome == "PASS"
    assert verdict_of(worse, clips, budgets=Budgets(max_delta_wer=9.99)).outcome == "FAIL"


def test_too_few_clips_leave_it_undecided_and_say_how_many_would_do() -> None:
    clips = make_clips()
    verdict = verdict_of(lines_of(clips, {3: 1, 9: 1}), clips)  # 0.5 points by two clips, budget 1
    found = gate(verdict, "delta_wer")
    assert verdict.outcome == found.outcome == "UNDECIDED"
    assert found.interval is not None
    assert found.interval[0] <= 1.0 < found.interval[1]
    assert found.clips_needed is not None
    assert found.clips_needed > 40
    assert f"about {found.clips_needed} would decide" in found.sentence
    many = make_clips(4 * found.clips_needed)
    same_rate = lines_of(many, {i: 1 for i in range(0, len(many), 20)})
    assert gate(verdict_of(same_rate, many), "delta_wer").outcome == "PASS"


def test_one_clip_decides_nothing() -> None:
    clips = make_clips(1)
    found = gate(verdict_of(lines_of(clips), clips), "delta_wer")
    assert (found.outcome, found.clips_needed) == ("UNDECIDED", 2)
    assert gate(verdict_of(lines_of(clips, {0: 9}), clips), "delta_wer").outcome == "UNDECIDED"


def test_the_recipe_has_a_budget_of_its_own() -> None:
    clips = make_clips()
    lossy = lines_of(clips, dict.fromkeys(range(40), 1))
    verdict = verdict_of(lossy, clips, expected=lossy)  # the binary loses nothing, the recipe 10 points
    assert gate(verdict, "delta_wer").outcome == "PASS"
    assert gate(verdict, "recipe_loss").outcome == verdict.outcome == "FAIL"
    assert verdict.recipe_loss == pytest.approx(10)
    assert verdict_of(lossy, clips, expected=lossy, budgets=Budgets(max_recipe_loss=11)).outcome == "PASS"
    open_ = verdict_of(lines_of(clips, {3: 1}), clips, expected=lines_of(clips, {3: 1}))
    assert gate(open_, "recipe_loss").outcome == open_.outcome == "UNDECIDED"


# -- the gates beside it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("new_empty", {"text": "  "}),
        ("new_looping", {"tokens": [1, 2, 3] * 9}),
        ("new_capped", {"capped": True}),
    ],
)
def test_a_new_bad_hypothesis_fails_but_not_one_that_float_makes_too(name: str, change: Line) -> None:
    clips = make_clips()
    loose = Budgets(max_delta_wer=50, max_recipe_loss=50)
    binary, expected = lines_of(clips), lines_of(clips)
    binary[5] |= change
    verdict = verdict_of(binary, clips, expected, budgets=loose)
    assert verdict.outcome == gate(verdict, name).outcome == "FAIL"
    assert "clip-0005" in gate(verdict, name).sentence
    assert [g.outcome for g in verdict.gates].count("FAIL") == 1
    expected[6] |= change  # that float has one too, elsewhere, excuses nothing
    assert verdict_of(binary, clips, expected, budgets=loose).outcome == "FAIL"
    expected[5] |= change
    assert verdict_of(binary, clips, expected, budgets=loose).outcome == "PASS"
    allowed = loose.model_copy(update={f"max_{name}": 1})
    assert verdict_of(binary, clips, budgets=allowed).outcome == "PASS"


def test_words_in_silence_fail_beyond_those_float_hears() -> None:
    clips = make_clips()
    lines = lines_of(clips)
    chatty = [{"id": "p", "text": "Thank you."}, {"id": "q", "text": ""}]
    other = [{"id": "p", "text": ""}, {"id": "q", "text": "Thank you."}]
    assert verdict_of(lines, clips, silence=score_silence(chatty, chatty)).outcome == "PASS"
    failed = verdict_of(lines, clips, silence=score_silence(chatty, other))  # as many words, in another clip
    assert failed.outcome == gate(failed, "silence").outcome == "FAIL"
    assert gate(failed, "silence").value == 2
    lenient = Budgets(max_silence_words=2)
    assert verdict_of(lines, clips, budgets=lenient, silence=score_silence(chatty, other)).outcome == "PASS"
    with pytest.raises(SessionFailed, match="only one of float and binary has clip q"):
        score_silence(chatty, other[:1])


def test_the_test_sets_own_silent_clips_are_probes() -> None:
    clips = [*make_clips(300), Clip(id="quiet", audio=Path(), text="", duration_s=5, speaker=None)]
    spoken = lines_of(clips[:-1])
    silent = [*spoken, {"id": "quiet", "text": ""}]
    chatty = [*spoken, {"id": "quiet", "text": "you"}]
    assert gate(verdict_of(silent, clips, silent, silent, silence=None), "silence").outcome == "PASS"
    failed = verdict_of(chatty, clips, silent, silent, silence=None)
    assert (gate(failed, "silence").value, failed.outcome) == (1, "FAIL")


def test_what_was_not_measured_has_not_passed() -> None:
    clips = make_clips()
    lines = [line | {"agree": None} for line in lines_of(clips)]
    verdict = verdict_of(lines, clips, silence=None)
    assert verdict.outcome == "UNDECIDED"
    for name in ("silence", "agreement"):
        assert (gate(verdict, name).outcome, gate(verdict, name).value) == ("UNDECIDED", None)
    assert verdict_of(lines, clips, budgets=Budgets(min_agreement=0)).outcome == "PASS"


def test_a_decoder_that_disagrees_fails_although_the_words_are_right() -> None:
    clips = make_clips()
    lines = lines_of(clips)
    for line in lines:
        line["agree"] = [10, 11]
    verdict = verdict_of(lines, clips)
    assert gate(verdict, "agreement").value == pytest.approx(10 / 11)
    assert gate(verdict, "agreement").outcome == verdict.outcome == "FAIL"
    assert verdict_of(lines, clips, budgets=Budgets(min_agreement=0.9)).outcome == "PASS"


def test_a_failed_gate_outweighs_an_undecided_one() -> None:
    clips = make_clips()
    lines = lines_of(clips, {3: 1, 9: 1})
    lines[0]["capped"] = True
    verdict = verdict_of(lines, clips)
    assert gate(verdict, "delta_wer").outcome == "UNDECIDED"
    assert verdict.outcome == "FAIL"


# -- the same clips, and where it loses --------------------------------------------------------


def test_scores_of_other_clips_are_refused() -> None:
    clips = make_clips(3)
    ours, fewer = score("binary", "host", clips, lines_of(clips)), score("float", "host", clips[:2], lines_of(clips))
    with pytest.raises(BadInput, match="float and binary differ in clip clip-0002"):
        judge(ours, fewer, ours)
    other = [clip.model_copy(update={"text": "alpha"}) for clip in clips]
    with pytest.raises(BadInput, match="clip-0000"):
        judge(score("stock", "host", other, lines_of(clips)), ours, ours)
    with pytest.raises(BadInput, match="language"):
        judge(score("stock", "host", clips, lines_of(clips), "de"), ours, ours)


def test_the_three_wers_are_broken_down_by_speaker_and_length() -> None:
    clips = make_clips(60, speakers=3)
    clips[0] = clips[0].model_copy(update={"speaker": None})
    binary = lines_of(clips, {i: 5 for i in range(1, 60, 3)})  # all of speaker s1, half of every clip
    verdict = verdict_of(binary, clips)
    speakers = {group.name: group for group in verdict.by_speaker}
    assert list(speakers) == ["s0", "s1", "s2", "unknown"]
    assert (speakers["s1"].wer, speakers["s1"].wer_float, speakers["s1"].wer_stock) == (50.0, 0.0, 0.0)
    assert (speakers["s2"].wer, speakers["unknown"].clips) == (0.0, 1)
    lengths = [group.name for group in verdict.by_duration]
    assert lengths == ["00-02 s", "02-05 s", "05-10 s", "10-20 s", "20-30 s", "30 s and more"]
    for groups in (verdict.by_speaker, verdict.by_duration):
        assert sum(group.clips for group in groups) == 60
        assert sum(group.words for group in groups) == verdict.words == 600
    silent = [*clips, Clip(id="z", audio=Path(), text="", duration_s=1, speaker="hush")]
    lines = [*lines_of(clips), {"id": "z", "text": "hm oh"}]
    assert verdict_of(lines, silent, lines, lines).by_speaker[0].wer is None


def test_the_verdict_carries_the_binarys_tier() -> None:
    clips = make_clips(2)
    host = score("float", "host", clips, lines_of(clips))
    stand_in = score("binary", "stand-in", clips, lines_of(clips))
    assert judge(host, host, stand_in).tier == "stand-in"
