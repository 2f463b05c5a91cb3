"""Write the results as one JSON and one page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nightjar.files import digest
from nightjar.report.page import render_report
from nightjar.scoring.drift import read_drift
from nightjar.scoring.score import Score
from nightjar.scoring.verdict import Verdict
from nightjar.store.artifact import RECORD
from tasks.judge import read_scores
from tasks.stage import stage


@stage
def report(
    *,
    model: str,
    precision: str,
    graphs: Path,
    calibration: Path | None,
    frontier: Path | None,
    binary: Path,
    obtained: Path,
    drift: Path | None,
    verdict: Path,
    stock: str,
    out: Path,
) -> dict[str, str]:
    """Write `results.json` and `report.html`, self-contained, from everything a verdict rests on.

    stock: what the upstream implementation is called.
    """
    built = json.loads((binary / "binary.json").read_text(encoding="utf-8"))
    judged = json.loads((verdict / "verdict.json").read_text(encoding="utf-8"))
    outcome = Verdict.model_validate(judged["verdict"])
    scores = read_scores(verdict)
    made_from: dict[str, Path] = {
        "graphs": graphs,
        "binary": binary,
        "hypotheses": obtained,
        "verdict": verdict,
    }
    if calibration is not None:
        made_from["calibration"] = calibration
    if frontier is not None:
        made_from["frontier"] = frontier
    if drift is not None:
        made_from["drift"] = drift
    binary_rtf = scores["binary"].rtf
    results: dict[str, Any] = {
        "model": model,
        "stock": stock,
        "target": built["target"],
        "tier": outcome.tier,
        "precision": precision,
        "wer": round(outcome.wer, 3),
        "wer_float": round(outcome.wer_float, 3),
        "wer_stock": round(outcome.wer_stock, 3),
        "delta_wer": round(outcome.delta_wer, 3),
        "interval": [round(bound, 3) for bound in outcome.interval],
        "verdict": outcome.outcome,
        "unit": outcome.unit,
        "clips": outcome.clips,
        "words": outcome.words,
        "skipped": len(judged["skipped"]),
        "aside": judged["aside"],
        "size_bytes": {name: part["size_bytes"] for name, part in built["parts"].items()},
        "rtf": {name: rtf.model_dump() for name, rtf in binary_rtf.items()} if binary_rtf else None,
        "throttled": scores["binary"].throttled,
        "int8_mac_share": {name: part["int8_mac_share"] for name, part in built["parts"].items()},
        "notes": {name: part["notes"] for name, part in built["parts"].items() if part.get("notes")},
        "hypotheses": outcome.hypotheses,
        "gates": [gate.model_dump(mode="json") for gate in outcome.gates],
        "scores": [
            {
                "subject": subject,
                "tier": score.tier,
                "wer": round(score.wer, 3),
                "interval": [round(bound, 3) for bound in score.interval],
                "counts": score.counts.model_dump(),
                "empty": score.empty,
                "looping": score.looping,
                "capped": score.capped,
                "rtf_p50": score.rtf["total"].p50 if score.rtf else None,
            }
            for subject, score in scores.items()
        ],
        "recipe": json.loads((graphs / "model.json").read_text(encoding="utf-8"))["recipe"],
        "made_from": {name: _record(folder) for name, folder in made_from.items()},
    }
    if scores["binary"].by_chunk or drift is not None:
        results["stream"] = _stream(scores, drift)
    if frontier is not None:
        results["search"] = json.loads((frontier / "pareto.json").read_text(encoding="utf-8"))
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    coverage = None
    if calibration is not None:
        coverage = json.loads((calibration / "calibration.json").read_text(encoding="utf-8"))["coverage"]
    page = render_report(results, outcome, scores, coverage)
    (out / "report.html").write_text(page, encoding="utf-8")
    return {"verdict": outcome.outcome}


def _stream(scores: Mapping[str, Score], drift: Path | None) -> dict[str, Any]:
    """Say what a stream has beside a clip's figures: errors by chunk, the time of chunks, drift."""
    found = read_drift(drift) if drift is not None else None
    return {
        "by_chunk": {name: [each.model_dump(mode="json") for each in score.by_chunk] for name, score in scores.items()},
        "chunk_times": {
            name: {**score.chunk_times.model_dump(mode="json"), "real_time": score.chunk_times.real_time}
            for name, score in scores.items()
            if score.chunk_times is not None
        },
        "drift": None if found is None else {**found.model_dump(mode="json"), "grown_db": round(found.grown_db, 2)},
    }


def _record(folder: Path) -> dict[str, Any]:
    """Take from an artifact's record what is needed to make it again: inputs, code and board by hash or version."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    parts: dict[str, str] = record["parts"]

    def those(kind: str) -> dict[str, str]:
        return {part.removeprefix(kind): value for part, value in parts.items() if part.startswith(kind)}

    return {
        "stage": record["stage"],
        "key": record["key"],
        "sha256": record["sha256"],
        "seconds": record["seconds"],
        "finished": record["finished"],
        "inputs": those("input "),
        "libraries": those("library "),
        "sdk": those("sdk "),
        "board": those("board."),
        "code_sha256": digest(those("code ")),
    }
