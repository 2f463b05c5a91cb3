"""Some clips on one board: put there, run, fetched one by one as they end, acknowledged, deleted there."""

import contextlib
import json
import logging
import shutil
import threading
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightjar.boards.board import Board
from nightjar.errors import SessionFailed
from nightjar.files import digest_file, storage_errors, write_atomic
from nightjar.sessions.scheduler import Work
from nightjar.speech.audio import load_audio
from nightjar.text import printable

log = logging.getLogger(__name__)


class Batches:
    """Run one job's clips, a batch at a time, on whichever board asks; what was fetched is in the work's ledger."""

    def __init__(
        self,
        *,
        work: Work,
        identity: str,
        job: Mapping[str, Any],
        clips: Mapping[str, Any],
        files: Mapping[str, Path],
        sources: Mapping[str, np.ndarray | Path],
        limit_bytes: int,
        silence_s: float,
        earlier: Sequence[Path],
    ) -> None:
        self.work, self.identity, self.job, self.clips, self.files = work, identity, job, clips, files
        self.sources, self.limit_bytes, self.silence_s, self.earlier = sources, limit_bytes, silence_s, earlier
        self.folder = work.ledger.folder
        self._taken: dict[str, Sequence[str]] = dict(self._before())
        self.before = dict(self._taken)
        self._placed = set[str]()  # boards that have all but the clips, for as long as we hold them
        self._decoded = set[str]()
        self._noting = threading.Lock()

    def _before(self) -> dict[str, list[str]]:
        """Read which board had which clips when an earlier run was killed: it may have finished some."""
        with contextlib.suppress(OSError, ValueError):
            said = json.loads((self.folder / "taken.json").read_text(encoding="utf-8"))
            return {alias: [name for name in names if name in self.sources] for alias, names in said.items()}
        return {}

    def run(self, board: Board, names: Sequence[str], begun: set[str]) -> None:
        """Run clips on a board that is held; see crew.Batches."""
        there = board.job_folder(self.folder, self.identity)
        given = self._prepared(board, names)
        if board.alias not in self._placed:
            given |= self.files
        self._placed.discard(board.alias)
        with storage_errors():
            board.put_all([(path, there / name) for name, path in sorted(given.items())])
        command = [board.python, str(there / "session.pyz"), str(there)]
        ended, done = False, set[str]()
        with contextlib.closing(
            board.stream(command, self.silence_s, lambda text: log.debug("session: %s", text))
        ) as said:
            for line in _parsed(said):
                if "begin" in line:
                    begun |= {str(line["begin"])} & set(names)
                elif "full" in line:
                    raise SessionFailed(
                        f"the disk of board {board.alias} is full: {printable(str(line['full']))}; free some space "
                        "there, then run the same command again"
                    )
                elif "end" in line:
                    ended = True
                elif "id" in line or "paused" not in line:
                    name = _checked(line, names, self.job)
                    done.add(name)
                    self._fetch(board, there, name, line)
        if not ended or done != set(names):
            missing = next((name for name in names if name not in done), "its last line")
            raise SessionFailed(f"the session gave no result for {missing}; run the same command again")
        self._placed.add(board.alias)

    def uses(self, board: Board) -> bool:
        """Tell whether something of this job may lie on a board."""
        return board.alias in self._taken

    def leave(self, board: Board) -> None:
        """Let a board that is held forget the job."""
        board.remove_job(board.job_folder(self.folder, self.identity))
        with self._noting:
            self._taken.pop(board.alias, None)
            write_atomic(self.folder / "taken.json", json.dumps(self._taken))

    def _prepared(self, board: Board, names: Sequence[str]) -> dict[str, Path]:
        """Write what a batch needs on the host; return it by its name in the job's folder."""
        job = {**self.job, "clips": [self.clips[name] for name in names], "spool_bytes": board.spool_bytes}
        own = f"job.{board.alias}.json" if board.spool_bytes else "job.json"
        with storage_errors():
            with self._noting:
                self._taken[board.alias] = names
                write_atomic(self.folder / "taken.json", json.dumps(self._taken))
            write_atomic(self.folder / own, json.dumps(job))
            (self.folder / "clips").mkdir(parents=True, exist_ok=True)
            new = [name for name in names if name not in self._decoded]  # by us: an earlier run's may be altered
            with ThreadPoolExecutor() as pool:
                deque(pool.map(self._decode, new), maxlen=0)
            self._decoded.update(new)
        waves = {f"clips/{name}.npy": self.folder / "clips" / f"{name}.npy" for name in names}
        return {"job.json": self.folder / own, **waves}

    def _decode(self, name: str) -> None:
        source, target = self.sources[name], self.folder / "clips" / f"{name}.npy"
        wave = load_audio(source) if isinstance(source, Path) else source
        part = self.folder / "clips" / f"{name}.part"
        with part.open("wb") as file:
            np.save(file, wave)
        part.rename(target)

    def _fetch(self, board: Board, there: Path, name: str, line: dict[str, Any]) -> None:
        """Fetch a clip's tensors, look at them, write the clip down, and let the board delete what is of it."""
        hashes = line.pop("sha256", {})
        kept = {f"harvest/{name}.{tensor}.npy": sha256 for tensor, sha256 in hashes.items()}
        own = [there / file for file in (*kept, f"clips/{name}.npy")]
        if name not in self.work.ledger.lines:
            with storage_errors():
                for file in kept:
                    self._seed(self.folder / file)
                board.get_all([(there / file, self.folder / file) for file in kept], self.limit_bytes)
                if any(digest_file(self.folder / file) != sha256 for file, sha256 in kept.items()):
                    for file in kept:
                        (self.folder / file).unlink()
                    board.delete(own[:-1])
                    why = f"its tensors were altered on board {board.alias} after they were written"
                    self.work.failed(board.alias, [name], why)
                    return
            self.work.ledger.add(line, kept)
        if kept:
            board.delete(own)
        self.work.finished(board.alias, name)

    def _seed(self, local: Path) -> None:
        """Lay what an earlier harvest had where half a file would lie: the same, it does not travel."""
        part = local.with_name(f"{local.name}.part")
        if local.exists() or part.exists():
            return
        for folder in self.earlier:
            if (found := folder / local.name).is_file():
                part.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # a gc took it: nothing that this run rests on
                    shutil.copyfile(found, part)
                return


def _parsed(said: Iterator[str]) -> Iterator[dict[str, Any]]:
    for text in said:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            yield line
        else:  # a vendor runtime that prints to stdout
            log.debug("session printed: %s", text[:1000])


class _Line(BaseModel):
    """What a session says of a clip; a board may say anything."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    audio_s: float = Field(ge=0)
    seconds: dict[str, float]
    throttled: str = Field("", max_length=200)
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}


class _DecodedLine(_Line):
    tokens: list[Annotated[int, Field(ge=0)]]
    steps: int = Field(ge=0)
    capped: bool
    agree: list[int] | None


def _checked(line: dict[str, Any], names: Container[str], job: Mapping[str, Any]) -> str:
    """Return the clip a line is of; raises SessionFailed for a line that no session writes."""
    try:
        checked = (_DecodedLine if job["decode"] else _Line).model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise SessionFailed(
            f"the session wrote a line that is none ({where}: {first['msg']}); look at what the board runs"
        ) from error
    if checked.id not in names:
        raise SessionFailed(f"the session wrote a line of no clip of ours, {checked.id[:100]!r}; look at what it runs")
    if checked.sha256.keys() != set(job["harvest"]):
        raise SessionFailed("the session wrote a line of other tensors than were wanted; look at what the board runs")
    return checked.id
