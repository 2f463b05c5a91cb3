"""A history of nights with real verdicts in a store, for what reads it."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nightjar.files import digest
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.report.page import render_report
from nightjar.scoring.score import Score, Tier, score, score_silence
from nightjar.scoring.verdict import Verdict, judge
from nightjar.speech.manifest import Clip
from nightjar.store.artifact import Store

WORDS = ["the", "night", "bird", "sings", "low", "over", "warm", "stones", "and", "moths"]
FIRST = datetime(2026, 10, 1, 2, tzinfo=UTC)
QUIET = [{"id": "probe", "text": ""}]


def night_name(number: int) -> str:
    """Name the `number`th night."""
    return (FIRST + timedelta(days=number)).strftime("%Y-%m-%dT%H:%M:%SZ")


def clips(count: int = 30, prefix: str = "clip", text: str = "") -> list[Clip]:
    """Make transcribed clips; `text` takes the place of the usual words."""
    said = [text or " ".join(WORDS[i % 4 :] + WORDS[: i % 4]) for i in range(count)]
    return [
        Clip(id=f"{prefix}-{i:03d}", audio=Path(), text=one, duration_s=3.0, speaker=f"s{i % 3}")
        for i, one in enumerate(said)
    ]


def verdict_of(heard: Sequence[Clip], wrong: int, tier: Tier, instead: str = "zulu") -> dict[str, Any]:
    """Judge a binary that gets the first word of `wrong` clips wrong; verdict.json as the stage writes it."""

    def lines(errors: int) -> list[dict[str, Any]]:
        return [
            {
                "id": clip.id,
                "text": " ".join([instead, *clip.text.split()[1:]]) if i < errors else clip.text,
                "tokens": list(range(9)),
                "agree": [9, 9],
                "seconds": {"total": 0.3},
                "audio_s": 3.0,
            }
            for i, clip in enumerate(heard)
        ]

    scores = {
        "stock": score("stock", "host", heard, lines(0)),
        "float": score("float", "host", heard, lines(0)),
        "binary": score("binary", tier, heard, lines(wrong)),
    }
    verdict = judge(scores["stock"], scores["float"], scores["binary"], silence=score_silence(QUIET, QUIET))
    return {
        "verdict": verdict.model_dump(mode="json"),
        "scores": {name: said.model_dump(mode="json") for name, said in scores.items()},
        "skipped": [],
        "aside": {},
    }


def keep(store: Store, stage: str, files: dict[str, str]) -> str:
    """Publish an artifact and return its key."""
    key = digest([stage, files])[:24]
    out = store.work(stage, key) / "out"
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    store.publish(stage, key, out, {}, {}, 1.0)
    return key


def report_of(name: str, verdict: dict[str, Any]) -> str:
    """Render the report of a verdict."""
    model, target, precision = name.rsplit("/", 2)
    said, scores = Verdict.model_validate(verdict["verdict"]), verdict["scores"]
    same = ("tier", "delta_wer", "interval", "clips", "words", "unit", "gates")
    results = {
        "model": model,
        "target": target,
        "precision": precision,
        "verdict": said.outcome,
        **{each: verdict["verdict"][each] for each in same},
        "skipped": 0,
        "aside": {},
        "scores": [{**score, "rtf_p50": None} for score in scores.values()],
        "size_bytes": {"encoder": 1_500_000, "decoder": 6_400_000},
        "int8_mac_share": {"encoder": 1.0, "decoder": 0.9},
        "rtf": None,
        "throttled": {},
        "made_from": {},
        "recipe": {},
    }
    return render_report(results, said, {who: Score.model_validate(score) for who, score in scores.items()}, None)


def scored(store: Store, night: str, name: str, verdict: dict[str, Any], **given: Any) -> Cell:
    """Make a cell's row of a verdict, and keep that and a report."""
    model, target, precision = name.rsplit("/", 2)
    said = verdict["verdict"]
    values: dict[str, Any] = {
        "tier": said["tier"],
        "outcome": said["outcome"],
        "counts": said["tier"] != "stand-in",
        **{each: said[each] for each in ("wer", "wer_float", "wer_stock", "delta_wer", "clips", "words")},
        "low": said["interval"][0],
        "high": said["interval"][1],
        "size_bytes": 7_900_000,
        "rtf": 0.021 if said["tier"] in ("host", "device") else None,
        "int8_mac_share": 0.97,
        "seconds": 12.0,
        "executed": 3,
        "checkpoint": digest("checkpoint"),
        "speech": digest("speech"),
        "code": digest("code"),
        "versions": "onnxruntime 1.31.1; rknn-toolkit2 2.4.0; torch 2.13.0",
        "judge": keep(store, "judge", {"verdict.json": json.dumps(verdict)}),
        "report": keep(store, "report", {"report.html": report_of(name, verdict), "results.json": "{}"}),
        "command": f"nightjar port --model {model} --target {target}",
        **given,
    }
    return Cell(night=night, cell=name, model=model, target=target, precision=precision, **values)


def a_week(history: History, store: Store) -> None:
    """Fill a history of seven nights: a board that is away on the fourth, a toolkit that makes the last one fail."""
    good, bad = (verdict_of(clips(), wrong, "vendor-simulator") for wrong in (1, 22))
    host, other = verdict_of(clips(), 0, "host"), verdict_of(clips(), 2, "stand-in")
    for number in range(7):
        night = night_name(number)
        last = number == 6
        newer = {"versions": "onnxruntime 1.31.1; rknn-toolkit2 2.5.0; torch 2.13.0"} if last else {}
        cells = [
            scored(store, night, "tiny/onnx/int8", host),
            scored(store, night, "tiny/rknn/int8", bad if last else good, **newer),
            scored(store, night, "tiny/mtk/int8", other),
        ]
        if number == 3:
            away = "board rk did not answer: switch it on"
            broken = {"model": "tiny", "target": "rknn", "precision": "int8", "outcome": "BROKEN", "error": away}
            cells[1] = Cell(night=night, cell="tiny/rknn/int8", counts=True, **broken)
        failed = [cell for cell in cells if cell.counts and cell.outcome in ("FAIL", "BROKEN")]
        why = "; ".join(f"{cell.cell} fails: {cell.error or 'WER of binary − float, budget 1.00'}" for cell in failed)
        said = (
            f"tiny/rknn/int8: WER is worse than in the previous run ({night_name(5)}): 0.33 → 7.33 %; likely cause: "
            "toolchain rknn-toolkit2 2.4.0 → 2.5.0."
        )
        finding = Finding(
            night=night,
            cell="tiny/rknn/int8",
            kind="wer",
            regression=True,
            against="last",
            other=night_name(5),
            before="0.33 %",
            after="7.33 %",
            low=5.5,
            high=8.4,
            causes="toolchain rknn-toolkit2 2.4.0 → 2.5.0",
            sentence=said,
        )
        row = Night(
            night=night, started=night, finished=night, outcome="FAIL" if failed else "PASS", cells=3, failed=why
        )
        history.append(row, cells, [finding] if last else [])
