"""A batch of clips on one board: upload, run, fetch each result as it ends, record it, delete it on the board."""

import contextlib
import json
import logging
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightjar.boards.board import Board
from nightjar.errors import SessionFailed, printable
from nightjar.files import digest_file, read_json_object, storage_errors, write_atomic
from nightjar.sessions.clip_queue import ClipQueue
from nightjar.speech.audio import load_audio

log = logging.getLogger(__name__)


@dataclass
class BatchRunner:
    """Run the clips of one job in batches, on any board; results go to the queue's journal.

    clips: job entry by clip; files: of the job, by name in its folder; sources: audio file or int16 wave by clip;
    limit_bytes: of one harvested file; earlier: folders of tensors harvested before.
    """

    queue: ClipQueue
    identity: str
    job: Mapping[str, Any]
    clips: Mapping[str, Any]
    files: Mapping[str, Path]
    sources: Mapping[str, np.ndarray | Path]
    limit_bytes: int
    silence_s: float
    earlier: Sequence[Path]

    def __post_init__(self) -> None:
        self.folder = self.queue.journal.folder
        self._uploaded = set[str]()  # boards that have all files but the clips, while they are locked

    def run(self, board: Board, names: Sequence[str], begun: set[str]) -> None:
        """Run clips on a locked board and record finished ones; `begun` grows by each clip that begins.

        After RunnerFailed, the clips in `begun` that are not finished are the suspects.
        """
        there = board.job_folder(self.folder, self.identity)
        uploads = self._prepare(board, names)
        if board.alias not in self._uploaded:
            uploads |= self.files
        self._uploaded.discard(board.alias)
        with storage_errors():
            board.put_all([(path, there / name) for name, path in sorted(uploads.items())])
        command = [board.python, str(there / "session.pyz"), str(there)]
        ended, done = False, set[str]()
        with contextlib.closing(
            board.stream(command, self.silence_s, lambda text: log.debug("session: %s", text))
        ) as output:
            for message in _parse(output):
                if "begin" in message:
                    begun |= {str(message["begin"])} & set(names)
                elif "full" in message:
                    raise SessionFailed(
                        f"the disk of board {board.alias} is full: {printable(str(message['full']))}; free some space "
                        "there, then run the same command again"
                    )
                elif "end" in message:
                    ended = True
                elif "id" in message or "paused" not in message:
                    name = _check(message, names, self.job)
                    done.add(name)
                    self._fetch(board, there, name, message)
        if not ended or done != set(names):
            missing = next((name for name in names if name not in done), "its last line")
            raise SessionFailed(f"the session gave no result for {missing}; run the same command again")
        self._uploaded.add(board.alias)

    def uses(self, board: Board) -> bool:
        """Tell whether files of this job may lie on a board."""
        return self._job_file(board).exists()

    def previous(self, board: Board) -> list[str]:
        """Name the clips of a board's last batch, which an earlier run or connection may not have ended."""
        return [clip["id"] for clip in read_json_object(self._job_file(board)).get("clips", ())]

    def clean_up(self, board: Board) -> None:
        """Delete the job's files on a locked board."""
        board.remove_job(board.job_folder(self.folder, self.identity))
        if board.spool_bytes:
            self._job_file(board).unlink(missing_ok=True)

    def _job_file(self, board: Board) -> Path:
        return self.folder / (f"job.{board.alias}.json" if board.spool_bytes else "job.json")

    def _prepare(self, board: Board, names: Sequence[str]) -> dict[str, Path]:
        """Write a batch's files on the host; return them by name in the job's folder."""
        job = {**self.job, "clips": [self.clips[name] for name in names], "spool_bytes": board.spool_bytes}
        with storage_errors(), ThreadPoolExecutor() as pool:
            write_atomic(self._job_file(board), json.dumps(job))
            (self.folder / "clips").mkdir(exist_ok=True)
            list(pool.map(self._decode, names))  # always: those of an earlier run may be altered
        clips = {f"clips/{name}.npy": self.folder / "clips" / f"{name}.npy" for name in names}
        return {"job.json": self._job_file(board), **clips}

    def _decode(self, name: str) -> None:
        source = self.sources[name]
        wave = load_audio(source) if isinstance(source, Path) else source
        np.save(self.folder / "clips" / f"{name}.npy", wave)

    def _fetch(self, board: Board, there: Path, name: str, result: dict[str, Any]) -> None:
        """Fetch and verify a clip's tensors, record the clip, and delete its files on the board."""
        tensors = {f"harvest/{name}.{tensor}.npy": sha256 for tensor, sha256 in result.pop("sha256", {}).items()}
        if name not in self.queue.journal.results:
            with storage_errors():
                for file in tensors:
                    self._seed(self.folder / file)
                board.get_all([(there / file, self.folder / file) for file in tensors], self.limit_bytes)
                if any(digest_file(self.folder / file) != sha256 for file, sha256 in tensors.items()):
                    for file in tensors:
                        (self.folder / file).unlink()
                    board.delete([there / file for file in tensors])
                    reason = f"its tensors were altered on board {board.alias} after they were written"
                    self.queue.count_failed(board.alias, [name], reason)
                    return
            self.queue.journal.add(result, tensors)
        if tensors:
            board.delete([there / file for file in (*tensors, f"clips/{name}.npy")])
        self.queue.count_finished(board.alias, name)

    def _seed(self, local: Path) -> None:
        """Copy a tensor of an earlier harvest to where a partial file would lie: an equal one is not transferred."""
        part = local.with_name(f"{local.name}.part")
        found = next((folder / local.name for folder in self.earlier if (folder / local.name).is_file()), None)
        if found is not None and not local.exists() and not part.exists():
            part.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # gc deleted it; this run does not depend on it
                shutil.copyfile(found, part)


def _parse(output: Iterator[str]) -> Iterator[dict[str, Any]]:
    for text in output:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict):
            yield message
        else:  # a vendor runtime that prints to stdout
            log.debug("session printed: %s", text[:1000])


class _Result(BaseModel):
    """The result of a clip as a session writes it; the board is not trusted."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    audio_s: float = Field(ge=0)
    seconds: dict[str, float]
    throttled: str = Field("", max_length=200)
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}


class _DecodedResult(_Result):
    tokens: list[Annotated[int, Field(ge=0)]]
    steps: int = Field(ge=0)
    capped: bool
    agree: list[int] | None


def _check(result: dict[str, Any], names: Container[str], job: Mapping[str, Any]) -> str:
    """Return the clip id of a result; raises SessionFailed for a result that no session writes."""
    try:
        checked = (_DecodedResult if job["decode"] else _Result).model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"invalid result line ({'.'.join(map(str, first['loc']))[:100]}: {first['msg']})"
        raise SessionFailed(f"{problem} from the board; check what runs there") from error
    if checked.id not in names:
        raise SessionFailed(f"result for an unknown clip id {checked.id[:100]!r} from the board; check what runs there")
    if checked.sha256.keys() != set(job["harvest"]):
        raise SessionFailed("result with other tensors than requested from the board; check what runs there")
    return checked.id
