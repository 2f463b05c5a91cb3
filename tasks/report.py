"""Write the results as one JSON and one page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from nightjar.files import digest, read_json
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
    """Write `results.json` and `report.html` from everything a verdict is made from; stock: the name of stock."""
    built, judged = read_json(binary / "binary.json"), read_json(verdict / "verdict.json")
    outcome, scores = Verdict.model_validate(judged["verdict"]), read_scores(verdict)
    made_from = {
        "graphs": graphs,
        "binary": binary,
        "hypotheses": obtained,
        "verdict": verdict,
        "calibration": calibration,
        "frontier": frontier,
        "drift": drift,
    }
    parts = built["parts"].items()
    results: dict[str, Any] = {
        "model": model,
        "stock": stock,
        "target": built["target"],
        "precision": precision,
        **outcome.model_dump(mode="json", include={"tier", "unit", "clips", "words", "hypotheses", "gates"}),
        **{name: round(getattr(outcome, name), 3) for name in ("wer", "wer_float", "wer_stock", "delta_wer")},
        "interval": _rounded(outcome.interval),
        "verdict": outcome.outcome,
        "skipped": len(judged["skipped"]),
        "aside": judged["aside"],
        "size_bytes": {name: part["size_bytes"] for name, part in parts},
        **scores["binary"].model_dump(include={"rtf", "throttled"}),
        "int8_mac_share": {name: part["int8_mac_share"] for name, part in parts},
        "notes": {name: part["notes"] for name, part in parts if part.get("notes")},
        "scores": [_score(score) for score in scores.values()],
        "recipe": read_json(graphs / "model.json")["recipe"],
        "made_from": {name: _record(folder) for name, folder in made_from.items() if folder is not None},
    }
    if scores["binary"].by_chunk or drift is not None:
        results["stream"] = to_jsonable_python(_stream(scores, drift))
    if frontier is not None:
        results["search"] = read_json(frontier / "pareto.json")
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    coverage = read_json(calibration / "calibration.json")["coverage"] if calibration is not None else None
    (out / "report.html").write_text(render_report(results, outcome, scores, coverage), encoding="utf-8")
    return {"verdict": outcome.outcome}


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(bound, 3) for bound in interval]


def _score(score: Score) -> dict[str, Any]:
    return {
        **score.model_dump(include={"subject", "tier", "counts", "empty", "looping", "capped"}),
        "wer": round(score.wer, 3),
        "interval": _rounded(score.interval),
        "rtf_p50": score.rtf["total"].p50 if score.rtf else None,
    }


def _stream(scores: Mapping[str, Score], drift: Path | None) -> dict[str, Any]:
    found = read_drift(drift) if drift is not None else None
    timed = {name: score.chunk_times for name, score in scores.items() if score.chunk_times is not None}
    return {
        "by_chunk": {name: score.by_chunk for name, score in scores.items()},
        "chunk_times": {name: {**dict(times), "real_time": times.real_time} for name, times in timed.items()},
        "drift": None if found is None else {**dict(found), "grown_db": round(found.grown_db, 2)},
    }


def _record(folder: Path) -> dict[str, Any]:
    """Read from an artifact's record what made it: inputs, code and board, by hash or version."""
    record = read_json(folder / RECORD)
    parts: dict[str, str] = record["parts"]

    def of(kind: str) -> dict[str, str]:
        return {part.removeprefix(kind): value for part, value in parts.items() if part.startswith(kind)}

    return {
        **{name: record[name] for name in ("stage", "key", "sha256", "seconds", "finished")},
        "inputs": of("input "),
        "libraries": of("library "),
        "sdk": of("sdk "),
        "board": of("board."),
        "code_sha256": digest(of("code ")),
    }
