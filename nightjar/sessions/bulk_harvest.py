"""Run many clips through one binary's encoder, by a board's service or by sessions, into a dataset."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from nightjar.boards.board import Board, BoardFacts
from nightjar.boards.config import find_board
from nightjar.dataset.reader import HarvestedClip, Index, open_dataset, write_dumps
from nightjar.dataset.writer import DatasetWriter
from nightjar.errors import BadOptions, BoardMissing, SessionFailed
from nightjar.files import read_json
from nightjar.plugins.board_choice import board_of, check_preflight
from nightjar.plugins.registry import Plugin, plugin
from nightjar.progress import tick
from nightjar.request import HarvestRequest
from nightjar.service.protocol import binary_digest, grpc_module
from nightjar.sessions.run import run_session
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, ids_in_line_order, load_speech, shuffled, speech_digest, split_by_window


class HarvestResult(NamedTuple):
    """A finished dataset; new_clips: harvested by this run; dumps: files written."""

    dataset: Index
    new_clips: int
    dumps: int = 0


Encode = Callable[[Sequence[Clip]], Iterator[HarvestedClip]]


def harvest_speech(request: HarvestRequest) -> HarvestResult:
    """Harvest the clips that the dataset in `out` lacks; then write the requested dumps.

    Raises BadOptions for a folder that is not a binary or has another dataset, BoardMissing for a board that does not
    answer or serves another binary, SessionFailed and StoreBroken when it ends early: the same request continues.
    """
    target, clips, dataset = _read_input(request)
    with _open_board(request, target, dataset) as (tier, facts, encode):
        made_from = {**dataset.made_from, "tier": tier, "board": facts.model_dump()}
        index = dataset.model_copy(update={"made_from": made_from})
        with DatasetWriter(request.out, index, [clip.id for clip in clips]) as writer:
            before = len(writer.done)
            for clip in encode([clip for clip in clips if clip.id not in writer.done]):
                writer.add(clip)
                tick(len(writer.done), len(clips))
            harvested = HarvestResult(writer.finish(), len(writer.done) - before)
    if request.dumps is None:
        return harvested
    written = open_dataset(request.out, verify=False)
    return harvested._replace(dumps=write_dumps(written, ids_in_line_order(request.speech), request.dumps))


def _read_input(request: HarvestRequest) -> tuple[Plugin, list[Clip], Index]:
    """Return the target, the clips, and the dataset's index without what depends on the board."""
    try:
        model = read_json(request.binary / "model.json")
        target = plugin("targets", read_json(request.binary / "binary.json")["target"])
        window_s, sha256 = model["recipe"]["window_s"], binary_digest(request.binary)
        outputs = {entry["name"]: tuple(entry["shape"][1:]) for entry in model["parts"]["encoder"]["outputs"]}
        shapes = {name: outputs[name] for name in model["harvest"]}
        if not shapes:
            raise ValueError("it has no tensor to harvest")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadOptions(
            f"--binary {request.binary} is not a binary ({type(error).__name__}): give a folder that build wrote, such "
            "as artifacts/build/KEY"
        ) from error
    if "chunk" in model:
        raise BadOptions(
            f"--binary {request.binary} is a streaming model, whose outputs are as long as its clips; those of a "
            "dataset have one shape: give a Whisper binary"
        )
    fitting, skipped = split_by_window(load_speech(request.speech, transcribed=False), window_s)
    if not fitting:
        raise BadOptions(f"{request.speech} has no clip of at most {window_s:g} s, this binary's window: give others")
    clips = sorted(shuffled(fitting, 0)[: request.limit], key=lambda clip: clip.id)
    clip_bytes = sum(2 * math.prod(shape) for shape in shapes.values())
    index = Index(
        made_from={
            "binary": sha256,
            "target": target.load().NAME,
            "model": {name: model[name] for name in ("family", "dims", "recipe")},
            "speech": speech_digest(clips),
        },
        tensors=shapes,
        clips=len(clips),
        shard_clips=min(4096, max(1, request.shard_mib * 2**20 // clip_bytes)),
        skipped=tuple(clip.id for clip in skipped),
    )
    return target, clips, index


@contextmanager
def _open_board(request: HarvestRequest, plugged: Plugin, dataset: Index) -> Iterator[tuple[str, BoardFacts, Encode]]:
    """Give a board's tier, its facts, and what harvests clips there: its service if it has one, else sessions."""
    target, alias, binary = plugged.load(), request.board, dataset.made_from["binary"]
    address = None if alias is None or alias in target.TIERS else find_board(alias)
    if address is None or not address.entry.service:
        ref = board_of(plugged, alias)
        yield ref.tier, ref.facts, lambda clips: _by_sessions(ref.connect(), request, dataset, clips)
        return
    grpc_module()
    from nightjar.service.client import ServiceBoard  # grpc, only where a service is used

    with ServiceBoard(address, dataset.tensors, target.RUNTIMES) as board:
        served = board.describe()
        if served.binary != binary:
            raise BoardMissing(
                f"board {address.alias} serves another binary ({served.binary[:12]}) than {request.binary} "
                f"({binary[:12]}): start its service with this one"
            )
        check_preflight(plugged, address.alias, served.facts)
        tier = target.TIERS["local"]
        yield tier, served.facts, lambda clips: board.encode((clip.id, load_audio(clip.audio)) for clip in clips)


def _by_sessions(
    board: Board, request: HarvestRequest, dataset: Index, clips: Sequence[Clip]
) -> Iterator[HarvestedClip]:
    """Harvest in sessions of at most a shard's bytes, so that few tensors lie on the disk twice."""
    names, folder, count = list(dataset.tensors), request.out / ".session", dataset.shard_clips
    for start in range(0, len(clips), count):
        batch = clips[start : start + count]
        for result in run_session(board, request.binary, batch, folder, decode=False, harvest=names):
            if "error" in result:
                raise SessionFailed(
                    f"clip {result['id']} cannot be harvested ({result['error']}): leave it out of --speech"
                )
            wave = np.load(folder / "clips" / f"{result['id']}.npy").astype("<i2", copy=False)
            tensors = {name: np.load(folder / "harvest" / f"{result['id']}.{name}.npy") for name in names}
            yield HarvestedClip(result["id"], result["audio_s"], hashlib.sha256(wave.tobytes()).hexdigest(), tensors)
        shutil.rmtree(folder)
