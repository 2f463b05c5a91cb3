"""Import encoder outputs that another tool dumped, as a harvest stores them."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from nightjar.errors import BadInput
from nightjar.files import digest, digest_file, read_json
from nightjar.progress import tick
from nightjar.speech.manifest import ids_in_line_order, load_speech, shuffled, split_by_window
from nightjar.store.artifact import Source
from tasks.stage import stage

COLLECTED = "collected.json"  # beside the dumps of tasks/run_program.py
NUMBER = re.compile(r"\d{6,}")
NAMING = "name them enc_%06d.bin by line of the manifest, from enc_000000.bin, or enc_<clip id>.bin"


def dumps_source(folder: Path) -> Source:
    """Describe a folder of dumps by names and content; raises BadInput where it has none."""
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: give --bin-dir the folder with enc_*.bin")
    files = dump_files(folder)
    if not files:
        raise BadInput(f"{folder} has no enc_*.bin: give --bin-dir the folder of the dumps; {NAMING}")
    return Source(path=folder.resolve(), sha256=digest({path.name: digest_file(path) for path in files}))


def ordered_source(speech: Source) -> Source:
    """Add the order of a manifest's lines, which numbers the dumps, to the key of the speech."""
    return speech.model_copy(update={"sha256": digest([speech.sha256, ids_in_line_order(speech.path)])})


def dump_files(folder: Path) -> list[Path]:
    """List a folder's dumps by name."""
    return sorted(path for path in folder.glob("enc_*.bin") if path.is_file())


@stage
def import_dumps(*, dumps: Path, graphs: Path, speech: Path, samples: int, seed: int, out: Path) -> dict[str, str]:
    """Check every dump against the graphs and store those of `samples` clips, drawn by seed, as a harvest does.

    A dump is `(n_audio_ctx, d)` little-endian float32 without a header. Clips longer than the window need none,
    because calibration skips them. Raises BadInput with the file at fault.
    """
    tensor, shape, window_s = harvested_tensor(graphs)
    clips = load_speech(speech)
    fitting, skipped = split_by_window(clips, window_s)
    files, order = dump_files(dumps), ids_in_line_order(speech)
    if (dumps / COLLECTED).exists():  # a board's own program dumped them, clip by clip
        collected = read_json(dumps / COLLECTED)["dumped"]
        fitting = [clip for clip in fitting if clip.id in collected]
        clip_of = {f"enc_{clip.id}.bin": clip.id for clip in fitting}
    else:
        clip_of = match_clips([path.name for path in files], [clip.id for clip in clips], order)
    _refuse_missing({clip.id for clip in fitting} - set(clip_of.values()), clip_of, order, len(fitting))
    check_sizes(files, shape, window_s)
    drawn = [clip.id for clip in shuffled(fitting, seed)[:samples]]
    for number, path in enumerate(files, 1):
        array = read_dump(path, shape)
        if clip_of[path.name] in drawn:
            np.save(out / f"{clip_of[path.name]}.{tensor}.npy", array)
        tick(number, len(files))
    (out / "clips.jsonl").write_text("".join(json.dumps(name) + "\n" for name in drawn), encoding="utf-8")
    return {"clips": str(len(drawn)), "skipped": str(len(skipped)), "tier": "as given"}


def harvested_tensor(graphs: Path) -> tuple[str, list[int], float]:
    """Return name and shape (n_audio_ctx, d) of the tensor that a harvest stores, and the model's window in seconds."""
    model = read_json(graphs / "model.json")
    tensor = model["harvest"][0]
    shape = next(output["shape"] for output in model["parts"]["encoder"]["outputs"] if output["name"] == tensor)[1:]
    return tensor, shape, model["recipe"]["window_s"]


def match_clips(names: Sequence[str], ids: Collection[str], order: Sequence[str]) -> dict[str, str]:
    """Map each dump's file name to its clip: all by number, the line in `order` from 0, or all by id.

    Raises BadInput for a mixture, for ambiguous names, and for a dump that belongs to no clip.
    """
    labels = {name: name.removeprefix("enc_").removesuffix(".bin") for name in names}
    by_id = {name: text for name, text in labels.items() if text in ids}
    numbered = {name: int(text) for name, text in labels.items() if NUMBER.fullmatch(text)}
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
            f"{_listed(surplus)} belong{'s' * (len(surplus) == 1)} to none of the {len(ids)} clips: {NAMING}; remove "
            "dumps of other speech, or give the --calibration-set that was dumped"
        )
    # Ids that are numbers themselves, 000000 and so on, are unambiguous when both readings agree.
    if not only_id and not only_number and len(by_number) == len(names) and by_number != by_id:
        name = next(name for name in names if by_number[name] != by_id[name])
        raise BadInput(
            f"{name} may be line {numbered[name]}, clip {by_number[name]!r}, or the clip of that id, on another line: "
            "sort the manifest by its ids, or give its lines ids that are not numbers"
        )
    return chosen


def check_sizes(files: Sequence[Path], shape: Sequence[int], window_s: float) -> None:
    """Compare every file's size with `shape` in float32; raises BadInput with each wrong file and both sizes."""
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
        "and window of the dumps"
    )


def read_dump(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Read one dump as `shape` float16, as a harvest stores it; raises BadInput for values beyond float16."""
    array = np.fromfile(path, "<f4").reshape(shape)
    with np.errstate(over="ignore"):
        half: np.ndarray = array.astype(np.float16)
    bad = np.argwhere(~np.isfinite(half))
    if len(bad):
        row, column = (int(index) for index in bad[0])
        value = array[row, column]
        why = "beyond float16's ±65504" if np.isfinite(value) else "not a finite number"
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
