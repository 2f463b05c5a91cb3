"""Score hypotheses and judge the binary by its budgets."""

from pathlib import Path
from typing import Any

from pydantic_core import to_json

from nightjar.errors import BadManifest
from nightjar.files import read_json
from nightjar.scoring.drift import read_drift
from nightjar.scoring.score import Score, Tier, score, score_silence
from nightjar.scoring.verdict import Budgets
from nightjar.scoring.verdict import judge as judge_scores
from nightjar.speech.manifest import Clip
from tasks.hypotheses import read_excluded, read_hypotheses
from tasks.stage import stage


@stage
def judge(
    *,
    stock: Path,
    expected: Path,
    obtained: Path,
    drift: Path | None,
    language: str,
    tier: Tier,
    budgets: Budgets,
    out: Path,
) -> dict[str, str]:
    """Score stock, float graphs (`expected`) and binary (`obtained`) on the clips that all three have, and judge."""
    lines = {"stock": read_hypotheses(stock), "float": read_hypotheses(expected), "binary": read_hypotheses(obtained)}
    ids = [{line["id"] for line in each if not line["probe"]} for each in lines.values()]
    common = set.intersection(*ids)
    clips = [clip for clip in clips_from_lines(lines["binary"]) if clip.id in common]
    if not clips:
        raise BadManifest(
            "stock, float and binary have no clip in common: give speech that fits the window, or pass --long chunk"
        )
    scores = {
        subject: score(subject, tier if subject == "binary" else "host", clips, each, language)
        for subject, each in lines.items()
    }
    probes = {subject: [line for line in each if line["probe"]] for subject, each in lines.items()}
    # A board's own program, of which only the output is read, has no probes.
    silence = score_silence(probes["float"], probes["binary"], language) if probes["binary"] else None
    # Only a run that can exclude clips writes the file and gets the gate.
    excluded = read_excluded(obtained) if (obtained / "aside.json").exists() else None
    stream_drift = read_drift(drift) if drift is not None else None
    verdict = judge_scores(scores["stock"], scores["float"], scores["binary"], budgets, silence, excluded, stream_drift)
    skipped = set.union(*ids, *({*read_json(folder / "skipped.json")} for folder in (stock, expected, obtained)))
    aside = {name: why for folder in (expected, obtained) for name, why in read_excluded(folder).items()}
    content = {
        "verdict": verdict,
        "budgets": budgets,
        "scores": scores,
        "silence": silence,
        "skipped": sorted(skipped - {clip.id for clip in clips} - aside.keys()),
        "aside": aside,
    }
    (out / "verdict.json").write_bytes(to_json(content, indent=1) + b"\n")
    return {"verdict": verdict.outcome}


def read_scores(folder: Path) -> dict[str, Score]:
    """Read the scores that `judge` wrote, by subject."""
    scores = read_json(folder / "verdict.json")["scores"]
    return {subject: Score.model_validate(each) for subject, each in scores.items()}


def clips_from_lines(lines: list[dict[str, Any]]) -> list[Clip]:
    """Return the clips of hypotheses, with their reference texts and without the silent probes."""
    return [
        Clip(id=line["id"], audio=Path(), text=line["reference"], duration_s=line["audio_s"], speaker=line["speaker"])
        for line in lines
        if not line["probe"]
    ]
