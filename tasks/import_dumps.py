"""Take encoder outputs that another tool dumped for a harvest."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from nightjar.errors import BadInput
from nightjar.files import digest, digest_file
from nightjar.progress import tick
from nightjar.speech.manifest import ids_in_line_order, load_speech, shuffled, split_by_window
from nightjar.store.artifact import Source
from tasks.stage import stage

COLLECTED = "collected.json"  # beside dumps that tasks/run_program.py collected
NUMBER = re.compile(r"\d{6,}")
NAMING = "name them enc_%06d.bin by line of the manifest, from enc_000000.bin, or enc_<clip id>.bin"


def dumps_source(folder: Path) -> Source:
    """Name a folder of dumps by their names and content; raises BadInput where it holds none."""
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: give --bin-dir the folder that holds enc_*.bin")
    files = dump_files(folder)
    if not files:
        raise BadInput(f"{folder} holds no enc_*.bin: give --bin-dir the folder of the dumps; {NAMING}")
    return Source(path=folder.resolve(), sha256=digest({path.name: digest_file(path) for path in files}))


def ordered_source(speech: Source) -> Source:
    """Let the order of a manifest's lines, which numbers dumps, be part of what names the speech."""
    return speech.model_copy(update={"sha256": digest([speech.sha256, ids_in_line_order(speech.path)])})


def dump_files(folder: Path) -> list[Path]:
    """List a folder's dumps by name; what else lies there is left alone."""
    return sorted(path for path in folder.glob("enc_*.bin") if path.is_file())


@stage
def import_dumps(*, dumps: Path, graphs: Path, speech: Path, samples: int, seed: int, out: Path) -> dict[str, str]:
    """Check every dump against the graphs and store those of `samples` clips, drawn by seed, as a harvest does.

    A dump is `(n_audio_ctx, d)` little-endian float32 without a header. Clips longer than the window need none, as
    calibration passes them over. Raises BadInput with the file at fault.
    """
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    tensor = model["harvest"][0]
    shape = next(o["shape"] for o in model["parts"]["encoder"]["outputs"] if o["name"] == tensor)[1:]
    clips = load_speech(speech)
    kept, skipped = split_by_window(clips, model["recipe"]["window_s"])
    files = dump_files(dumps)
    if (dumps / COLLECTED).exists():  # a board's own program dumped them, clip by clip
        collected = json.loads((dumps / COLLECTED).read_text(encoding="utf-8"))
        kept = [clip for clip in kept if clip.id in collected["dumped"]]
        clip_of = {f"enc_{clip.id}.bin": clip.id for clip in kept}
    else:
        clip_of = match_clips([path.name for path in files], [clip.id for clip in clips], ids_in_line_order(speech))
    _refuse_missing({clip.id for clip in kept} - set(clip_of.values()), clip_of, ids_in_line_order(speech), len(kept))
    check_sizes(files, shape, model["recipe"]["window_s"])
    drawn = [clip.id for clip in shuffled(kept, seed)[:samples]]
    for number, path in enumerate(files, 1):
        array = read_dump(path, shape)
        if clip_of[path.name] in drawn:
            np.save(out / f"{clip_of[path.name]}.{tensor}.npy", array)
        tick(number, len(files))
    (out / "clips.jsonl").write_text("".join(json.dumps(name) + "\n" for name in drawn), encoding="utf-8")
    return {"clips": str(len(drawn)), "skipped": str(len(skipped)), "tier": "as given"}


def match_clips(names: Sequence[str], ids: Collection[str], order: Sequence[str]) -> dict[str, str]:
    """Map each dump's file name to its clip: all by number, the line in `order` from 0, or all by id.

    Raises BadInput for a mixture, for names that read both ways, and for a dump of no clip.
    """
    said = {name: name.removeprefix("enc_").removesuffix(".bin") for name in names}
    by_id = {name: text for name, text in said.items() if text in ids}
    numbered = {name: int(text) for name, text in said.items() if NUMBER.fullmatch(text)}
    by_number = {name: order[number] for name, number in numbered.items() if number < len(order)}
    only_id, only_number = by_id.keys() - numbered.keys(), numbered.keys() - by_id.keys()
    if only_id and only_number:
        raise BadInput(
            f"dumps are named in two ways, {min(only_number)} by number and {min(only_id)} by id: "
            f"{NAMING}, all of them in the same way"
        )
    if only_number and not order:
        raise BadInput(
            f"{min(only_number)} is numbered, but a folder of speech has no order: give --calibration-set the "
            "manifest that the dumps were made from, or name them enc_<clip id>.bin"
        )
    chosen = by_number if only_number else by_id
    surplus = sorted(name for name in names if name not in chosen)
    if surplus:
        raise BadInput(
            f"{_listed(surplus)} belong{'s' * (len(surplus) == 1)} to none of the {len(ids)} clips: {NAMING}; take out "
            "what is of other speech, or give the --calibration-set that was dumped"
        )
    # Ids that are numbers themselves, 000000 and so on, are no question as long as both readings agree.
    if not only_id and not only_number and len(by_number) == len(names) and by_number != by_id:
        name = next(name for name in names if by_number[name] != by_id[name])
        raise BadInput(
            f"{name} may be line {numbered[name]}, clip {by_number[name]!r}, or the clip of that id, on another line: "
            "put the manifest in the order of its ids, or give its lines ids that are no numbers"
        )
    return chosen


def check_sizes(files: Sequence[Path], shape: Sequence[int], window_s: float) -> None:
    """Hold every file's size against `shape` in float32; raises BadInput with each wrong file and both sizes."""
    rows, width = shape
    expected = rows * width * 4
    wrong = [(path.name, found) for path in files if (found := path.stat().st_size) != expected]
    if not wrong:
        return
    listed = [f"{name} expected {expected} bytes, found {found}" for name, found in wrong]
    other, rest = divmod(wrong[0][1], width * 4)
    hint = f"; {other} rows are a --window of {window_s * other / rows:g}" if other and not rest else ""
    raise BadInput(
        f"{len(wrong)} of {len(files)} dumps have the wrong size: {_listed(listed)} "
        f"({rows} rows × {width} float32 for this model and window{hint}); dump again, or pass the model, checkpoint "
        "and window they were made with"
    )


def read_dump(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Read one dump as `shape` float16, as a harvest keeps it; raises BadInput for values that this cannot hold."""
    array = np.fromfile(path, "<f4").reshape(shape)
    with np.errstate(over="ignore"):
        half: np.ndarray = array.astype(np.float16)
    bad = np.argwhere(~np.isfinite(half))
    if len(bad):
        row, column = (int(index) for index in bad[0])
        value = array[row, column]
        why = "beyond float16's ±65504" if np.isfinite(value) else "no finite number"
        raise BadInput(
            f"{path.name}: {value:g} at row {row}, column {column} is {why} ({len(bad)} such values); "
            "check that it is little-endian float32 of the float encoder, and dump it again"
        )
    return half


def _refuse_missing(missing: Collection[str], found: dict[str, str], order: Sequence[str], clips: int) -> None:
    if not missing:
        return
    numbered = any(name != f"enc_{clip}.bin" for name, clip in found.items())
    names = [f"enc_{order.index(clip):06d}.bin" if numbered else f"enc_{clip}.bin" for clip in missing]
    raise BadInput(
        f"{_listed(sorted(names))} {'is' if len(names) == 1 else 'are'} missing ({len(names)} of {clips} clips): dump "
        "every clip of the --calibration-set, or give a manifest of those that were dumped"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
