"""The host's side of a session: make the job, run it on boards, collect its results."""

import hashlib
import io
import math
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nightjar.device.session  # travels in the zipapp, so its code is part of every key that runs one
from nightjar.boards.board import Board
from nightjar.errors import SessionFailed
from nightjar.files import digest, digest_file, read_json, storage_errors, write_atomic
from nightjar.paths import ROOT
from nightjar.sessions.batch import BatchRunner
from nightjar.sessions.clip_queue import ClipQueue
from nightjar.sessions.journal import Journal
from nightjar.sessions.scheduler import LockBoard, run_on_boards
from nightjar.speech.manifest import Clip
from nightjar.store.artifact import VIEWS
from nightjar.store.fingerprint import closure

SILENCE_S = 300.0  # a clip that takes longer than this is a hung runtime


def pack_session(modules: Sequence[str]) -> bytes:
    """Pack the session and the modules that it runs into one zipapp, byte for byte the same for the same code."""
    members = {"__main__.py": b"import sys\nfrom nightjar.device.session import main\nsys.exit(main(sys.argv[1]))\n"}
    for name in closure([nightjar.device.session.__name__, *modules]).files:
        members[name] = (ROOT / name).read_bytes()
        for parent in Path(name).parents[:-1]:
            members.setdefault(f"{parent.as_posix()}/__init__.py", b"")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return packed.getvalue()


def session_modules(
    model: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], runners: Mapping[str, str] = {}
) -> list[str]:
    """Name the modules that parts need on a board: the model's decode loop, and runners as the board names them."""
    needed = sorted({entry["runner"] for entry in parts.values()})
    return [f"models.{model['family']}.decode", *(runners.get(name, f"targets.{name}.runner") for name in needed)]


def run_session(
    boards: Board | Sequence[Board],
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
    timestamps: bool = False,
    earlier: Sequence[Path] = (),
    lock_board: LockBoard = lambda board, is_over: board.locked(is_over=is_over),
) -> list[dict[str, Any]]:
    """Run clips, then `waves` (int16 by id), through a binary and return the session's results in that order.

    Several boards share the clips. folder: the job's scratch folder; clips that a killed run finished there do not run
    again. encoder: another binary whose encoder replaces this one's; forced, watch: by clip, as in a model's
    `EncodedClip`; timestamps: sample those of Whisper; earlier: folders of tensors harvested before; equal tensors are
    not transferred again. A clip on which the runner crashed or hung twice has the result {"id", "error"}. Raises
    SessionFailed when the session ends early.
    """
    shared = list(boards) if isinstance(boards, Sequence) else [boards]
    first = shared[0]
    parts, model = read_json(binary / "binary.json")["parts"], read_json(binary / "model.json")
    files = {path.name: path for path in binary.iterdir() if path.is_file() and path.name not in VIEWS}
    if encoder is not None:
        parts["encoder"] = read_json(encoder / "binary.json")["parts"]["encoder"]
        model["parts"]["encoder"] = read_json(encoder / "model.json")["parts"]["encoder"]
        files |= {path.name: path for path in encoder.glob("encoder.*")}
    if timestamps:
        model["timestamps"] = True
    sources: dict[str, np.ndarray | Path] = {clip.id: clip.audio for clip in clips} | dict(waves or {})
    forced, watch = forced or {}, watch or {}
    entries = {
        name: {"id": name, "file": f"clips/{name}.npy", "forced": forced.get(name), "watch": watch.get(name)}
        for name in sources
    }
    job = {
        "model": model,
        "parts": parts if decode else {"encoder": parts["encoder"]},
        "decode": decode,
        "harvest": list(harvest),
        "language": language,
        "runners": dict(first.runners),
        "workers": first.workers,
    }
    app = pack_session(session_modules(model, parts, first.runners))
    with storage_errors():
        identity = _identity([job, entries], app, files, sources)
        open_job_folder(folder, identity)
        (folder / "session.pyz").write_bytes(app)
    journal = Journal(folder)
    queue = ClipQueue(sources, journal, len(shared))
    runner = BatchRunner(
        queue=queue,
        identity=identity,
        job=job,
        clips=entries,
        files={**files, "session.pyz": folder / "session.pyz"},
        sources=sources,
        limit_bytes=_harvest_bytes(model),
        silence_s=SILENCE_S,
        earlier=earlier,
    )
    run_on_boards(shared, runner, lock_board)
    if missing := [name for name in sources if name not in journal.results and name not in queue.excluded]:
        raise SessionFailed(f"the session gave no result for {missing[0]}; run the same command again")
    return [journal.results.get(name) or {"id": name, "error": queue.excluded[name]} for name in sources]


def split_excluded(results: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Split the results of run_session into those of finished clips, and the reason by excluded clip."""
    finished = [result for result in results if "error" not in result]
    return finished, {result["id"]: result["error"] for result in results if "error" in result}


def _harvest_bytes(model: dict[str, Any]) -> int:
    """Bound the size of a harvested file; a streaming model gives an output per chunk."""
    chunks = round(100 * model["recipe"]["window_s"] / model["chunk"]["shift"]) + 2 if "chunk" in model else 1
    elements: int = max(math.prod(output["shape"]) for output in model["parts"]["encoder"]["outputs"])
    return 8 * chunks * elements + 4096  # the .npy header


def _identity(job: Any, app: bytes, files: Mapping[str, Path], sources: Mapping[str, np.ndarray | Path]) -> str:
    """Hash all inputs of a session, so that no result is taken for that of another clip of the same name."""
    content = {name: digest_file(path) for name, path in files.items()}
    for name, source in sources.items():
        wave = source.read_bytes() if isinstance(source, Path) else np.ascontiguousarray(source).tobytes()
        content[f"clip {name}"] = hashlib.sha256(wave).hexdigest()
    return digest([job, content, hashlib.sha256(app).hexdigest(), sys.version])


def open_job_folder(folder: Path, identity: str) -> None:
    """Make a scratch folder, or reuse one of this very job and code; one of another job is deleted."""
    stamp = folder / "identity"
    if folder.exists() and (not stamp.exists() or stamp.read_text(encoding="utf-8") != identity):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(stamp, identity)
