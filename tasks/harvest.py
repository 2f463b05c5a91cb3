"""Run the float binary on the board and keep the encoder's outputs."""

import json
from pathlib import Path

from nightjar.boards.ref import BoardRef
from nightjar.files import read_json
from nightjar.plugins.registry import Plugin
from nightjar.sessions.run import split_excluded
from nightjar.speech.manifest import load_speech, shuffled, split_by_window
from tasks.dask import run_clips
from tasks.hypotheses import result_meta, write_excluded
from tasks.stage import current_run, stage


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
    """Harvest float16 encoder outputs of `samples` clips, drawn by seed, with the float binary on the board."""
    model, store = read_json(binary / "model.json"), current_run().store
    tensors, earlier = model["harvest"], [store.path(record.artifact) for record in store.records("harvest")]
    fitting, skipped = split_by_window(load_speech(speech), model["recipe"]["window_s"])
    clips = shuffled(fitting, seed)[:samples]
    lines, excluded = split_excluded(
        run_clips(board, binary, clips, work, decode=False, harvest=tensors, earlier=earlier)
    )
    for line in lines:
        for name in tensors:
            file = f"{line['id']}.{name}.npy"
            (work / "harvest" / file).rename(out / file)
    (out / "clips.jsonl").write_text("".join(json.dumps(line["id"]) + "\n" for line in lines), encoding="utf-8")
    write_excluded(out, excluded)
    return result_meta(len(lines), skipped, board.tier, excluded)
