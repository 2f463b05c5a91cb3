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
    """Write `results.json` and `report.html` from everything a verdict is made from; stock: the name of stock."""
    built = _json(binary / "binary.json")
    judged = _json(verdict / "verdict.json")
    outcome = Verdict.model_validate(judged["verdict"])
    scores = read_scores(verdict)
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
    rtf = scores["binary"].rtf
    results: dict[str, Any] = {
        "model": model,
        "stock": stock,
        "target": built["target"],
        "tier": outcome.tier,
        "precision": precision,
        **{name: round(getattr(outcome, name), 3) for name in ("wer", "wer_float", "wer_stock", "delta_wer")},
        "interval": _rounded(outcome.interval),
        "verdict": outcome.outcome,
        "unit": outcome.unit,
        "clips": outcome.clips,
        "words": outcome.words,
        "skipped": len(judged["skipped"]),
        "aside": judged["aside"],
        "size_bytes": {name: part["size_bytes"] for name, part in parts},
        "rtf": {name: each.model_dump() for name, each in rtf.items()} if rtf else None,
        "throttled": scores["binary"].throttled,
        "int8_mac_share": {name: part["int8_mac_share"] for name, part in parts},
        "notes": {name: part["notes"] for name, part in parts if part.get("notes")},
        "hypotheses": outcome.hypotheses,
        "gates": [gate.model_dump(mode="json") for gate in outcome.gates],
        "scores": [_score(score) for score in scores.values()],
        "recipe": _json(graphs / "model.json")["recipe"],
        "made_from": {name: _record(folder) for name, folder in made_from.items() if folder is not None},
    }
    if scores["binary"].by_chunk or drift is not None:
        results["stream"] = _stream(scores, drift)
    if frontier is not None:
        results["search"] = _json(frontier / "pareto.json")
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    coverage = _json(calibration / "calibration.json")["coverage"] if calibration is not None else None
    (out / "report.html").write_text(render_report(results, outcome, scores, coverage), encoding="utf-8")
    return {"verdict": outcome.outcome}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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
    """Collect the figures of a stream: errors by chunk, time per chunk, drift."""
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
    """Read from an artifact's record what made it: inputs, code and board, by hash or version."""
    record = _json(folder / RECORD)
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
