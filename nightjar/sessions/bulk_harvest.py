"""Run much speech through one binary's encoder, by a board's service or by sessions, into a dataset."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nightjar.boards.board import Board
from nightjar.boards.config import BoardAddress, find_board
from nightjar.dataset.dumps import write_dumps
from nightjar.dataset.reader import HarvestedClip, Index, open_dataset
from nightjar.dataset.writer import Writer
from nightjar.errors import BadOptions, BoardMissing
from nightjar.plugins.board_choice import board_of, check_preflight
from nightjar.plugins.registry import Plugin, plugin
from nightjar.progress import tick
from nightjar.request import HarvestRequest
from nightjar.service.protocol import binary_digest, grpc_module
from nightjar.sessions.run import run_session
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, ids_in_line_order, load_speech, shuffled, speech_digest, split_by_window

log = logging.getLogger(__name__)


class HarvestResult(NamedTuple):
    """What a harvest came to: clips in the dataset, those of this run, those longer than the window; dumps written."""

    dataset: Index
    made: int
    dumps: int = 0


class HarvestInput(NamedTuple):
    """A harvest whose input has been read: the folder, what it is, the clips."""

    binary: Path
    content: str  # sha256
    model: dict[str, Any]
    target: Plugin
    clips: list[Clip]
    skipped: list[Clip]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Say how large each harvested tensor of a clip is, without the batch axis."""
        outputs = {entry["name"]: entry["shape"] for entry in self.model["parts"]["encoder"]["outputs"]}
        return {name: tuple(outputs[name][1:]) for name in self.model["harvest"]}


def harvest_speech(request: HarvestRequest) -> HarvestResult:
    """Harvest what the dataset in `out` does not have yet; then write the dumps that are asked for.

    Raises BadOptions for a folder that is no binary or holds another dataset, BoardMissing for a board that is not
    there or serves another binary, SessionFailed and StoreBroken when it ends early: the same request goes on.
    """
    harvested = _harvested(request, _asked(request))
    if request.dumps is None:
        return harvested
    dataset = open_dataset(request.out, verify=False)
    return harvested._replace(dumps=write_dumps(dataset, ids_in_line_order(request.speech), request.dumps))


def _harvested(request: HarvestRequest, asked: HarvestInput) -> HarvestResult:
    if (reach := _service(request.board, asked.target)) is not None:
        grpc_module()
        from nightjar.service.client import ServiceBoard  # grpc, only where a service is used

        module = asked.target.load()
        with ServiceBoard(reach, asked.shapes(), module.RUNTIMES) as board:
            served = board.describe()
            if served.binary != asked.content:
                raise BoardMissing(
                    f"board {reach.alias} serves another binary ({served.binary[:12]}) than {asked.binary} "
                    f"({asked.content[:12]}): start its service with this one"
                )
            check_preflight(asked.target, reach.alias, served.facts)
            with _writer(request, asked, module.TIERS["local"], served.facts.model_dump()) as writer:
                todo = [clip for clip in asked.clips if clip.id not in writer.done]
                return _kept(writer, asked, board.encode((clip.id, load_audio(clip.audio)) for clip in todo))
    ref = board_of(asked.target, request.board)
    with _writer(request, asked, ref.tier, ref.facts.model_dump()) as writer:
        todo = [clip for clip in asked.clips if clip.id not in writer.done]
        return _kept(writer, asked, _by_sessions(ref.connect(), asked, todo, request))


def _asked(request: HarvestRequest) -> HarvestInput:
    try:
        model = json.loads((request.binary / "model.json").read_text(encoding="utf-8"))
        target = json.loads((request.binary / "binary.json").read_text(encoding="utf-8"))["target"]
        window_s, content = model["recipe"]["window_s"], binary_digest(request.binary)
        if not model["harvest"]:
            raise ValueError("no tensor of it is harvested")
        if "chunk" in model:
            raise BadOptions(
                f"--binary {request.binary} hears a stream: its outputs are as long as its clips, and a dataset's are "
                "of one shape: give a Whisper's binary"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadOptions(
            f"--binary {request.binary} is no binary ({type(error).__name__}): give a folder that build wrote, such as "
            "artifacts/build/KEY"
        ) from error
    kept, skipped = split_by_window(load_speech(request.speech, transcribed=False), window_s)
    if not kept:
        raise BadOptions(f"{request.speech} has no clip of at most {window_s:g} s, this binary's window: give others")
    clips = sorted(shuffled(kept, 0)[: request.limit], key=lambda clip: clip.id)
    return HarvestInput(request.binary, content, model, plugin("targets", target), clips, skipped)


def _service(alias: str | None, target: Plugin) -> BoardAddress | None:
    """Find a board that is reached by its service."""
    if alias is None or alias in target.load().TIERS:
        return None
    reach = find_board(alias)
    return reach if reach.entry.service else None


def _writer(request: HarvestRequest, asked: HarvestInput, tier: str, facts: dict[str, Any]) -> Writer:
    shapes = asked.shapes()
    clip_bytes = sum(2 * math.prod(shape) for shape in shapes.values())
    return Writer(
        request.out,
        Index(
            made_from={
                "binary": asked.content,
                "target": asked.target.load().NAME,
                "tier": tier,
                "board": facts,
                "model": {name: asked.model[name] for name in ("family", "dims", "recipe")},
                "speech": speech_digest(asked.clips),
            },
            tensors=shapes,
            clips=len(asked.clips),
            shard_clips=max(1, min(4096, request.shard_mib * 2**20 // clip_bytes)),
            skipped=tuple(clip.id for clip in asked.skipped),
        ),
        [clip.id for clip in asked.clips],
    )


def _kept(writer: Writer, asked: HarvestInput, results: Iterator[HarvestedClip]) -> HarvestResult:
    before = len(writer.done)
    for encoded in results:
        writer.add(encoded)
        tick(len(writer.done), len(asked.clips))
    return HarvestResult(writer.finish(), len(writer.done) - before)


def _by_sessions(
    board: Board, asked: HarvestInput, clips: Sequence[Clip], request: HarvestRequest
) -> Iterator[HarvestedClip]:
    """Harvest by sessions of at most a shard's bytes, so that the disk holds little twice."""
    names, folder = list(asked.shapes()), request.out / ".session"
    at_once = max(1, request.shard_mib * 2**20 // sum(2 * math.prod(shape) for shape in asked.shapes().values()))
    for start in range(0, len(clips), at_once):
        some = clips[start : start + at_once]
        for line in run_session(board, asked.binary, some, folder, decode=False, harvest=names):
            wave = np.load(folder / "clips" / f"{line['id']}.npy")
            tensors = {name: np.load(folder / "harvest" / f"{line['id']}.{name}.npy") for name in names}
            yield HarvestedClip(line["id"], line["audio_s"], _sha256(wave), tensors)
        shutil.rmtree(folder)


def _sha256(wave: np.ndarray) -> str:
    return hashlib.sha256(wave.astype("<i2", copy=False).tobytes()).hexdigest()
