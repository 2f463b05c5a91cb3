"""Run the float binary where the NPU is and keep the encoder's outputs."""

import json
from pathlib import Path

from nightjar.board import BoardRef
from nightjar.data import load_speech, shuffled, split_by_window
from nightjar.job import run_session
from nightjar.plugins import Plugin
from tasks.stage import stage


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
    lines = run_session(board.connect(), binary, clips, work, decode=False, harvest=model["harvest"])
    for path in sorted((work / "harvest").glob("*.npy")):
        path.rename(out / path.name)
    (out / "clips.jsonl").write_text("".join(json.dumps(line["id"]) + "\n" for line in lines), encoding="utf-8")
    return {"clips": str(len(clips)), "skipped": str(len(skipped)), "tier": board.tier}
