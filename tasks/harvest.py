"""Run the float binary where the NPU is and keep the encoder's outputs."""

import json
from pathlib import Path

from nightjar.boards.ref import BoardRef
from nightjar.plugins.registry import Plugin
from nightjar.sessions.run import split_excluded
from nightjar.speech.manifest import load_speech, shuffled, split_by_window
from tasks.dask import run_clips
from tasks.hypotheses import excluded_meta
from tasks.stage import earlier_results, stage


@stage
def harvest(
    *,
    binary: Path,
    speech: Path,
    session: tuple[Plugin, ...],
    board: BoardRef,
    samples: int,
    seed: int,
    out: Path,
    work: Path,
) -> dict[str, str]:
    """Harvest float16 hidden states of `samples` clips, drawn by seed, from the float binary on the board."""
    model = json.loads((binary / "model.json").read_text(encoding="utf-8"))
    kept, skipped = split_by_window(load_speech(speech), model["recipe"]["window_s"])
    clips = shuffled(kept, seed)[:samples]
    lines, aside = split_excluded(
        run_clips(
            board,
            binary,
            clips,
            work,
            decode=False,
            harvest=model["harvest"],
            earlier=earlier_results("harvest"),
        )
    )
    for line in lines:
        for name in model["harvest"]:
            file = f"{line['id']}.{name}.npy"
            (work / "harvest" / file).rename(out / file)
    (out / "clips.jsonl").write_text("".join(json.dumps(line["id"]) + "\n" for line in lines), encoding="utf-8")
    if aside:
        (out / "aside.json").write_text(json.dumps(aside, ensure_ascii=False), encoding="utf-8")
    return {"clips": str(len(lines)), "skipped": str(len(skipped)), "tier": board.tier} | excluded_meta(aside)
