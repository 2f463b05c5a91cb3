"""What is said of a cell's night, from planted scores: what is found, what is not, what is named as the cause."""

from typing import Any

import numpy as np
import pytest

from nightjar.nightly.config import CellRequest
from nightjar.nightly.evidence import Evidence
from nightjar.nightly.history import Cell, Finding
from nightjar.nightly.outcomes import CellResult, Failure, cell_row, failure_from_message, night_row, night_summary
from nightjar.nightly.regression import best_night, cell_findings
from nightjar.request import PortRequest
from nightjar.scoring.score import Score, score
from nightjar.speech.manifest import Clip

WORDS = ["red", "blue", "stop", "start", "left", "right", "up", "down", "house", "tree"]
CLIPS = [Clip(id=f"c{i}", audio=".", text=" ".join(WORDS), duration_s=3.0, speaker="ada") for i in range(40)]
MADE: dict[str, Any] = {
    name: {
        "stage": stage,
        "sha256": f"{name} bytes",
        "inputs": inputs,
        "libraries": {"numpy": "2.4.6"},
        "sdk": {"rknn-toolkit2": "2.5.0"} if name == "binary" else {},
        "board": {"tier": "device", "runtimes.driver": "0.9.8"} if name == "hypotheses" else {},
        "code_sha256": f"{name} code",
    }
    for name, stage, inputs in (
        ("graphs", "export", {"checkpoint": "aaaa"}),
        ("binary", "build", {"graphs": "x"}),
        ("hypotheses", "evaluate", {"binary": "y", "speech": "speech"}),
        ("verdict", "judge", {}),
    )
}


def heard(errors: int, tier: Any = "device", slower: float = 1.0, seed: int = 0) -> Score:
    """Score forty clips of which `errors` have one word wrong; seconds with a tenth of noise."""
    noise = np.random.default_rng(seed).lognormal(0, 0.1, len(CLIPS))
    lines = [
        {
            "id": clip.id,
            "text": " ".join([*WORDS[:-1], "wrong"] if number < errors else WORDS),
            "seconds": {"total": 0.3 * slower * noise[number]},
            "audio_s": 3.0,
        }
        for number, clip in enumerate(CLIPS)
    ]
    return score("binary", tier, CLIPS, lines)


def night(
    number: int,
    binary: Score,
    made: dict[str, dict[str, Any]] | None = None,
    reference: Score | None = None,
    **row: Any,
) -> Evidence:
    """Make a night's evidence: MADE with `made` laid over it, and a row that says what the scores do."""
    made_from = {name: {**each, **(made or {}).get(name, {})} for name, each in MADE.items()}
    base: dict[str, Any] = {
        "night": f"2026-11-{number:02d}T02:00:00Z",
        "cell": "m/t/int8",
        "model": "m",
        "target": "t",
        "precision": "int8",
        "tier": binary.tier,
        "outcome": "PASS",
        "counts": True,
        "wer": binary.wer,
        "clips": len(CLIPS),
        "size_bytes": 1_000_000,
        "rtf": binary.rtf["total"].p50 if binary.rtf else None,
        "checkpoint": made_from["graphs"]["inputs"]["checkpoint"],
        "speech": made_from["hypotheses"]["inputs"]["speech"],
        "judge": f"verdict {number}",
        "report": f"report {number}",
        "command": "nightjar port --model m --target t",
    }
    scores = {"binary": binary, "float": reference or heard(0, "host"), "stock": heard(0, "host")}
    sizes = {"encoder": 600_000, "decoder": int(row.get("size_bytes", 1_000_000)) - 600_000}
    return Evidence(cell=Cell(**{**base, **row}), scores=scores, made_from=made_from, size_bytes=sizes)


def said(tonight: Evidence, last: Evidence, best: Evidence | None = None, *more: Evidence) -> list[Finding]:
    rows = [each.cell for each in (*([best] if best else []), *more, last)]
    return cell_findings(tonight, last, best, rows)


def test_a_night_that_made_nothing_anew_has_no_finding() -> None:
    first = night(1, heard(2))
    same = first.model_copy(update={"cell": first.cell.model_copy(update={"night": "2026-11-02T02:00:00Z"})})
    assert said(same, first) == []
    assert cell_findings(first, None, None, []) == []


def test_a_worse_wer_names_the_toolchain_and_not_what_gave_the_same_bytes() -> None:
    made = {
        "graphs": {"code_sha256": "another comment"},  # the same bytes came out
        "binary": {"sha256": "other", "sdk": {"rknn-toolkit2": "2.5.1"}},
        "hypotheses": {"sha256": "other"},
        "verdict": {"sha256": "other"},
    }
    (found,) = said(night(2, heard(16), made), night(1, heard(2)))
    assert (found.kind, found.regression, found.against) == ("wer", True, "last")
    assert found.causes == "toolchain rknn-toolkit2 2.5.0 → 2.5.1"
    assert (found.before, found.after) == ("0.50 %", "4.00 %")
    assert found.low is not None
    assert 0 < found.low < 3.5
    assert "stock changed too" not in found.sentence


def test_a_difference_that_chance_explains_is_none_and_the_versions_are_said() -> None:
    made = {"hypotheses": {"sha256": "other", "code_sha256": "edited"}}
    (found,) = said(night(2, heard(3), made), night(1, heard(2)))
    assert (found.kind, found.regression, found.causes) == ("versions", False, "code of evaluate")


def test_scores_on_other_speech_are_not_compared() -> None:
    made = {"hypotheses": {"sha256": "other", "inputs": {"speech": "another"}}}
    (found,) = said(night(2, heard(30), made), night(1, heard(2)))
    assert (found.kind, found.regression) == ("versions", False)
    assert "not compared" in found.sentence
    assert best_night([night(1, heard(2)).cell], "another") is None


def test_a_drift_is_found_against_the_best_night_it_began_from() -> None:
    rows = [night(number, heard(errors)) for number, errors in ((1, 2), (2, 4), (3, 6), (4, 8))]
    best = best_night([each.cell for each in rows[:-1]], "speech")
    assert best is not None
    assert best.night == rows[0].cell.night
    found = said(rows[3], rows[2], rows[0], rows[1])
    assert [(each.kind, each.against, each.other) for each in found if each.regression] == [
        ("wer", "best", rows[0].cell.night)
    ]


@pytest.mark.parametrize(
    ("tier", "slower", "machine", "expected"),
    [
        ("device", 1.05, 1.0, False),
        ("device", 1.4, 1.0, True),
        ("host", 1.4, 1.01, False),
        ("host", 2.2, 1.01, True),
        ("host", 2.2, 2.1, False),  # the whole machine was slower
        ("host", 2.2, 0.5, False),  # or busy now and then
        ("host", 2.2, 1.2, False),  # nor is it known what a little more load does
    ],
)
def test_rtf_counts_beyond_its_noise_and_the_machines_mood(
    tier: Any, slower: float, machine: float, expected: bool
) -> None:
    one = night(1, heard(2, tier), reference=heard(0, "host", seed=5))
    two = night(2, heard(2, tier, slower, seed=1), reference=heard(0, "host", machine, seed=6))
    found = [each for each in said(two, one) if each.kind == "rtf"]
    assert bool(found) == expected
    assert all(each.regression for each in found)


def test_a_checkpoint_of_the_same_shapes_is_no_cause_of_another_rtf() -> None:
    made = {"graphs": {"sha256": "other", "inputs": {"checkpoint": "bbbb"}}}
    one = night(1, heard(2))
    (found,) = [each for each in said(night(2, heard(2, slower=2.0, seed=1), made), one) if each.kind == "rtf"]
    assert "checkpoint" not in found.causes + found.sentence
    larger = night(2, heard(2, slower=2.0, seed=1), made, size_bytes=1_500_000)
    (found,) = [each for each in said(larger, one) if each.kind == "rtf"]
    assert found.causes.startswith("checkpoint")


def test_a_change_of_stock_is_what_it_explains_and_the_rest_is_the_ports() -> None:
    one = night(1, heard(2))
    two = night(2, heard(20))
    stock = {"stock": heard(16, "host")}
    (found,) = said(two.model_copy(update={"scores": {**two.scores, **stock}}), one)
    # 18 of 400 words of the binary and 16 of stock
    assert "+4.50 points" in found.sentence
    assert "stock changed too, by +4.00, and the port adds +0.50" in found.sentence
    assert found.regression


def test_rtf_that_earlier_nights_had_anyway_is_no_finding() -> None:
    nights = [night(number, heard(2, slower=slower)) for number, slower in ((1, 1.0), (2, 1.5), (3, 1.1), (4, 1.4))]
    assert not [each for each in said(nights[3], nights[2], None, *nights[:2]) if each.kind == "rtf"]


def test_size_says_which_part_and_options_are_a_cause() -> None:
    asked = "nightjar port --model m --target t --float-nodes 'decoder:*'"
    (found,) = said(night(2, heard(2), size_bytes=1_500_000, command=asked), night(1, heard(2)))
    assert (found.kind, found.regression, found.before, found.after) == ("size", True, "1.00 MB", "1.50 MB")
    assert "decoder" in found.sentence
    assert found.causes == "options --float-nodes none → decoder:*"


def test_a_night_fails_by_what_was_asked_for_and_not_by_what_nobody_has() -> None:
    def row(number: int, failure: Failure) -> tuple[Cell, dict[str, Failure]]:
        cell_request = CellRequest(cell=f"m/t{number}/fp", request=PortRequest(target=f"t{number}"), tier="device")
        ended = CellResult(cell_request=cell_request, seconds=1, failure=failure)
        return cell_row("n", ended), {cell_request.cell: failure}

    absent = failure_from_message(
        "Flow run encountered an exception: ToolchainMissing: the toolchain of t1 is not installed"
    )
    assert (absent.outcome, absent.exit_code, absent.origin) == ("MISSING", 3, "toolchain")
    wrong = failure_from_message("Flow run encountered an exception: BadManifest: no clips\nin it")
    lost = failure_from_message("Flow run infrastructure exited with non-zero status code -9")
    assert (wrong.outcome, lost.outcome) == ("MISSING", "BROKEN")
    rows = [row(number, failure) for number, failure in enumerate((absent, wrong, lost), 1)]
    cells = [cell for cell, _ in rows]
    failures = {name: failure for _, because in rows for name, failure in because.items()}
    never = night_row("n", "", "", cells[:1], failures, frozenset())
    assert never.outcome == "PASS"
    assert "1 is missing" in night_summary(never, cells[:1], [])
    had = night_row("n", "", "", cells, failures, frozenset({"m/t1/fp"}))
    assert had.outcome == "FAIL"
    assert had.failed.split("; ") == [
        "m/t1/fp is missing: the toolchain of t1 is not installed",
        "m/t2/fp is missing: no clips in it",
        "m/t3/fp broke: Flow run infrastructure exited with non-zero status code -9",
    ]
