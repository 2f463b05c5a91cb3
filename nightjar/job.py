"""The host's side of a session: make the job, run it on a board, collect its lines."""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import shutil
import sys
import zipfile
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import nightjar.session  # travels in the zipapp, so its code is part of every key that runs one
from nightjar.artifact import storing, write_atomic
from nightjar.audio import load_audio
from nightjar.board import Board
from nightjar.closure import ROOT, closure
from nightjar.data import Clip
from nightjar.errors import SessionFailed
from nightjar.progress import tick

log = logging.getLogger(__name__)

SILENCE_S = 300.0  # a clip that takes longer than this is a hung runtime


def zipapp(modules: Sequence[str]) -> bytes:
    """Pack the session and the modules it runs into one file, byte for byte the same for the same code."""
    members = {"__main__.py": b"import sys\nfrom nightjar.session import main\nsys.exit(main(sys.argv[1]))\n"}
    members |= {name: (ROOT / name).read_bytes() for name in closure([nightjar.session.__name__, *modules]).files}
    for name in list(members):
        for parent in Path(name).parents:
            if parent.name:
                members.setdefault(f"{parent.as_posix()}/__init__.py", b"")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return packed.getvalue()


def session_modules(
    model: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], runners: Mapping[str, str] = {}
) -> list[str]:
    """Name the modules that parts need on a board: the model's decode loop, and runners as the board says."""
    needed = sorted({entry["runner"] for entry in parts.values()})
    return [f"models.{model['family']}.decode", *(runners.get(name, f"targets.{name}.runner") for name in needed)]


def run_session(
    board: Board,
    binary: Path,
    clips: Sequence[Clip],
    folder: Path,
    *,
    decode: bool,
    harvest: Sequence[str] = (),
    language: str = "en",
    forced: dict[str, list[int]] | None = None,
    waves: Mapping[str, np.ndarray] | None = None,
    watch: dict[str, list[list[int]]] | None = None,
    encoder: Path | None = None,
) -> list[dict[str, Any]]:
    """Run clips, then `waves` (int16 by id), through a binary on a board and return the session's lines in that order.

    `folder` is the job's scratch folder; finished clips found there from an earlier, killed run are not run again.
    encoder: another binary whose encoder takes the place of this one's; forced, watch: by clip, as a
    model's `Job` has them. Raises
    SessionFailed when the session ends early.
    """
    parts = _read(binary, "binary.json")["parts"]
    model, files = _read(binary, "model.json"), {path.name: path for path in binary.iterdir() if path.is_file()}
    if encoder is not None:
        parts["encoder"] = _read(encoder, "binary.json")["parts"]["encoder"]
        model["parts"]["encoder"] = _read(encoder, "model.json")["parts"]["encoder"]
        files |= {path.name: path for path in encoder.glob("encoder.*")}
    wanted = parts if decode else {"encoder": parts["encoder"]}
    sources: dict[str, np.ndarray | Path] = {clip.id: clip.audio for clip in clips} | dict(waves or {})
    job = {
        "model": model,
        "parts": wanted,
        "clips": [
            {
                "id": name,
                "file": f"clips/{name}.npy",
                "forced": (forced or {}).get(name),
                "watch": (watch or {}).get(name),
            }
            for name in sources
        ],
        "decode": decode,
        "harvest": list(harvest),
        "language": language,
        "runners": dict(board.runners),
        "workers": board.workers,
    }
    app = zipapp(session_modules(model, parts, board.runners))
    with storing():
        identity = _keep_or_clear(folder, job, app)
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        (folder / "session.pyz").write_bytes(app)
        write_atomic(folder / "job.json", json.dumps(job))
        with ThreadPoolExecutor() as pool:
            deque(pool.map(functools.partial(_place, folder / "clips"), sources, sources.values()), maxlen=0)
    own = ["session.pyz", "job.json", *(f"clips/{name}.npy" for name in sources)]
    given = [(path, name) for name, path in sorted(files.items())] + [(folder / name, name) for name in own]
    lines: dict[str, dict[str, Any]] = {}
    ended = False
    with board.held():
        there = board.place(folder, identity)
        with storing():
            board.put_all([(path, there / name) for path, name in given])
        command = [board.python, str(there / "session.pyz"), str(there)]
        with contextlib.closing(board.lines(command, SILENCE_S, lambda text: log.debug("session: %s", text))) as said:
            for line in _parsed(said):
                if "end" in line:
                    ended = True
                    continue
                lines[_checked(line, sources, decode)] = line
                tick(len(lines), len(sources))
        if not ended or lines.keys() != sources.keys():
            missing = next(iter(sources.keys() - lines.keys()), "its last line")
            raise SessionFailed(f"the session gave no result for {missing}; run the same command again")
        kept = [f"harvest/{name}.{tensor}.npy" for name in sources for tensor in harvest]
        with storing():
            board.get_all([(there / name, folder / name) for name in kept], _harvest_bytes(model, harvest))
            board.leave(there)
    return [lines[name] for name in sources]


class _Line(BaseModel):
    """What a session says of a clip; a board may say anything."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    audio_s: float = Field(ge=0)
    seconds: dict[str, float]


class _DecodedLine(_Line):
    tokens: list[Annotated[int, Field(ge=0)]]
    steps: int = Field(ge=0)
    capped: bool
    agree: list[int] | None


def _checked(line: dict[str, Any], sources: Container[str], decode: bool) -> str:
    """Return the clip a line is of; raises SessionFailed for a line that no session writes."""
    try:
        checked = (_DecodedLine if decode else _Line).model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise SessionFailed(
            f"the session wrote a line that is none ({where}: {first['msg']}); look at what the board runs"
        ) from error
    if checked.id not in sources:
        raise SessionFailed(f"the session wrote a line of no clip of ours, {checked.id[:100]!r}; look at what it runs")
    return checked.id


def _harvest_bytes(model: dict[str, Any], harvest: Sequence[str]) -> int:
    """Say how long a harvested file is at most, from the encoder's outputs: float16 behind an .npy header."""
    outputs = {entry["name"]: entry["shape"] for entry in model["parts"]["encoder"]["outputs"]}
    return max((2 * math.prod(outputs[name]) for name in harvest), default=0) + 4096


def _place(folder: Path, name: str, source: np.ndarray | Path) -> None:
    if not (target := folder / f"{name}.npy").exists():
        wave = load_audio(source) if isinstance(source, Path) else source
        with target.with_suffix(".part").open("wb") as file:
            np.save(file, wave)
        target.with_suffix(".part").rename(target)


def _read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


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


def _keep_or_clear(folder: Path, job: dict[str, Any], app: bytes) -> str:
    """Go on in a scratch folder only if it is of this very job and code; return what stands for both."""
    identity = hashlib.sha256(json.dumps(job, sort_keys=True).encode() + app + sys.version.encode()).hexdigest()
    stamp = folder / "identity"
    if folder.exists() and (not stamp.exists() or stamp.read_text(encoding="utf-8") != identity):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(stamp, identity)
    return identity
