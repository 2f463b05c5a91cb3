"""Run many clips through one binary's encoder, by a board's service or by sessions, into a dataset."""

import hashlib
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nightjar.boards.board import Board
from nightjar.boards.config import BoardAddress, find_board
from nightjar.dataset.reader import HarvestedClip, Index, open_dataset, write_dumps
from nightjar.dataset.writer import DatasetWriter
from nightjar.errors import BadOptions, BoardMissing
from nightjar.files import read_json
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
    """A finished dataset; new_clips: harvested by this run; dumps: files written."""

    dataset: Index
    new_clips: int
    dumps: int = 0


class _Input(NamedTuple):
    """The binary and the clips of a harvest."""

    request: HarvestRequest
    binary_sha256: str
    model: dict[str, Any]
    target: Plugin
    clips: list[Clip]
    skipped: list[Clip]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each harvested tensor of a clip, without the batch axis."""
        outputs = {entry["name"]: entry["shape"] for entry in self.model["parts"]["encoder"]["outputs"]}
        return {name: tuple(outputs[name][1:]) for name in self.model["harvest"]}

    def shard_clips(self) -> int:
        """Return how many clips fit into a shard."""
        clip_bytes = sum(2 * math.prod(shape) for shape in self.shapes().values())
        return max(1, self.request.shard_mib * 2**20 // clip_bytes)


def harvest_speech(request: HarvestRequest) -> HarvestResult:
    """Harvest the clips that the dataset in `out` lacks; then write the requested dumps.

    Raises BadOptions for a folder that is not a binary or has another dataset, BoardMissing for a board that does not
    answer or serves another binary, SessionFailed and StoreBroken when it ends early: the same request continues.
    """
    harvested = _harvest(_read_input(request))
    if request.dumps is None:
        return harvested
    dataset = open_dataset(request.out, verify=False)
    return harvested._replace(dumps=write_dumps(dataset, ids_in_line_order(request.speech), request.dumps))


def _harvest(given: _Input) -> HarvestResult:
    target = given.target.load()
    if (address := _service_address(given)) is not None:
        grpc_module()
        from nightjar.service.client import ServiceBoard  # grpc, only where a service is used

        with ServiceBoard(address, given.shapes(), target.RUNTIMES) as board:
            served = board.describe()
            if served.binary != given.binary_sha256:
                raise BoardMissing(
                    f"board {address.alias} serves another binary ({served.binary[:12]}) than {given.request.binary} "
                    f"({given.binary_sha256[:12]}): start its service with this one"
                )
            check_preflight(given.target, address.alias, served.facts)
            with _writer(given, target.TIERS["local"], served.facts.model_dump()) as writer:
                waves = ((clip.id, load_audio(clip.audio)) for clip in _missing(writer, given))
                return _write(writer, given, board.encode(waves))
    ref = board_of(given.target, given.request.board)
    with _writer(given, ref.tier, ref.facts.model_dump()) as writer:
        return _write(writer, given, _by_sessions(ref.connect(), given, _missing(writer, given)))


def _read_input(request: HarvestRequest) -> _Input:
    try:
        model = read_json(request.binary / "model.json")
        target = plugin("targets", read_json(request.binary / "binary.json")["target"])
        window_s, sha256 = model["recipe"]["window_s"], binary_digest(request.binary)
        if not model["harvest"]:
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
    return _Input(request, sha256, model, target, clips, skipped)


def _service_address(given: _Input) -> BoardAddress | None:
    """Return the address of a board that is reached by its service."""
    alias = given.request.board
    if alias is None or alias in given.target.load().TIERS:
        return None
    address = find_board(alias)
    return address if address.entry.service else None


def _writer(given: _Input, tier: str, facts: dict[str, Any]) -> DatasetWriter:
    return DatasetWriter(
        given.request.out,
        Index(
            made_from={
                "binary": given.binary_sha256,
                "target": given.target.load().NAME,
                "tier": tier,
                "board": facts,
                "model": {name: given.model[name] for name in ("family", "dims", "recipe")},
                "speech": speech_digest(given.clips),
            },
            tensors=given.shapes(),
            clips=len(given.clips),
            shard_clips=min(4096, given.shard_clips()),
            skipped=tuple(clip.id for clip in given.skipped),
        ),
        [clip.id for clip in given.clips],
    )


def _missing(writer: DatasetWriter, given: _Input) -> list[Clip]:
    return [clip for clip in given.clips if clip.id not in writer.done]


def _write(writer: DatasetWriter, given: _Input, results: Iterator[HarvestedClip]) -> HarvestResult:
    before = len(writer.done)
    for clip in results:
        writer.add(clip)
        tick(len(writer.done), len(given.clips))
    return HarvestResult(writer.finish(), len(writer.done) - before)


def _by_sessions(board: Board, given: _Input, clips: Sequence[Clip]) -> Iterator[HarvestedClip]:
    """Harvest in sessions of at most a shard's bytes, so that few tensors lie on the disk twice."""
    names, folder = list(given.shapes()), given.request.out / ".session"
    for start in range(0, len(clips), given.shard_clips()):
        batch = clips[start : start + given.shard_clips()]
        for result in run_session(board, given.request.binary, batch, folder, decode=False, harvest=names):
            wave = np.load(folder / "clips" / f"{result['id']}.npy").astype("<i2", copy=False)
            tensors = {name: np.load(folder / "harvest" / f"{result['id']}.{name}.npy") for name in names}
            yield HarvestedClip(result["id"], result["audio_s"], hashlib.sha256(wave.tobytes()).hexdigest(), tensors)
        shutil.rmtree(folder)
