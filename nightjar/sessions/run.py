"""The host's side of a session: make the job, run it on a board, collect its lines."""

import hashlib
import io
import json
import math
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nightjar.device.session  # travels in the pack_session, so its code is part of every key that runs one
from nightjar.boards.board import Board
from nightjar.errors import SessionFailed
from nightjar.files import digest_file, storage_errors, write_atomic
from nightjar.paths import ROOT
from nightjar.sessions.batch import Batches
from nightjar.sessions.journal import Journal
from nightjar.sessions.scheduler import Hold, Work, run_on_boards
from nightjar.speech.manifest import Clip
from nightjar.store.artifact import VIEWS
from nightjar.store.fingerprint import closure

SILENCE_S = 300.0  # a clip that takes longer than this is a hung runtime


def pack_session(modules: Sequence[str]) -> bytes:
    """Pack the session and the modules it runs into one file, byte for byte the same for the same code."""
    members = {"__main__.py": b"import sys\nfrom nightjar.device.session import main\nsys.exit(main(sys.argv[1]))\n"}
    members |= {
        name: (ROOT / name).read_bytes() for name in closure([nightjar.device.session.__name__, *modules]).files
    }
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
    earlier: Sequence[Path] = (),
    hold: Hold = lambda board, over: board.locked(over=over),
) -> list[dict[str, Any]]:
    """Run clips, then `waves` (int16 by id), through a binary and return the session's lines in that order.

    Several boards share the clips. `folder` is the job's scratch folder; finished clips found there from an earlier,
    killed run are not run again. encoder: another binary whose encoder takes the place of this one's; forced, watch: by
    clip, as in a model's `EncodedClip`; earlier: folders of tensors harvested before, of which what is the same does
    not travel. A clip that the runner crashed or hung on twice has the line {"id", "error"}. Raises SessionFailed when
    the session ends early.
    """
    shared = [boards] if not isinstance(boards, Sequence) else list(boards)
    first = shared[0]
    parts = _read(binary, "binary.json")["parts"]
    model = _read(binary, "model.json")
    files = {path.name: path for path in binary.iterdir() if path.is_file() and path.name not in VIEWS}
    if encoder is not None:
        parts["encoder"] = _read(encoder, "binary.json")["parts"]["encoder"]
        model["parts"]["encoder"] = _read(encoder, "model.json")["parts"]["encoder"]
        files |= {path.name: path for path in encoder.glob("encoder.*")}
    wanted = parts if decode else {"encoder": parts["encoder"]}
    sources: dict[str, np.ndarray | Path] = {clip.id: clip.audio for clip in clips} | dict(waves or {})
    given = {
        name: {
            "id": name,
            "file": f"clips/{name}.npy",
            "forced": (forced or {}).get(name),
            "watch": (watch or {}).get(name),
        }
        for name in sources
    }
    job = {
        "model": model,
        "parts": wanted,
        "decode": decode,
        "harvest": list(harvest),
        "language": language,
        "runners": dict(first.runners),
        "workers": first.workers,
    }
    app = pack_session(session_modules(model, parts, first.runners))
    with storage_errors():
        identity = open_job_folder(folder, _identity([job, given], app, files, sources))
        (folder / "session.pyz").write_bytes(app)
    ledger = Journal(folder)
    work = Work(sources, ledger, len(shared))
    batches = Batches(
        work=work,
        identity=identity,
        job=job,
        clips=given,
        files={**files, "session.pyz": folder / "session.pyz"},
        sources=sources,
        limit_bytes=_harvest_bytes(model, harvest),
        silence_s=SILENCE_S,
        earlier=earlier,
    )
    run_on_boards(shared, work, batches, hold)
    if missing := [name for name in sources if name not in ledger.lines and name not in work.aside]:
        raise SessionFailed(f"the session gave no result for {missing[0]}; run the same command again")
    return [ledger.lines.get(name) or {"id": name, "error": work.aside[name]} for name in sources]


def split_excluded(lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Part what run_session returns into the lines of finished clips, and why by clip for those set aside."""
    return [line for line in lines if "error" not in line], {
        line["id"]: line["error"] for line in lines if "error" in line
    }


def _harvest_bytes(model: dict[str, Any], harvest: Sequence[str]) -> int:
    """Say how long a harvested file is at most, from the encoder's outputs: float16 behind an .npy header.

    A stream's are as many as its chunks; what counts is as it is, in 8 bytes at most.
    """
    outputs = {e["name"]: (2 if e["dtype"] == "float32" else 8) * math.prod(e["shape"]) for e in _outputs(model)}
    chunks = round(100 * model["recipe"]["window_s"] / model["chunk"]["shift"]) + 2 if "chunk" in model else 1
    return max((chunks * outputs[name] for name in harvest), default=0) + 4096


def _outputs(model: dict[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = model["parts"]["encoder"]["outputs"]
    return entries


def _read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def _identity(job: Any, app: bytes, files: Mapping[str, Path], sources: Mapping[str, np.ndarray | Path]) -> str:
    """Hash what a session computes from, so that no line is ever taken for another clip's of the same name."""
    content = {name: digest_file(path) for name, path in files.items()} | {
        f"clip {name}": digest_file(source)
        if isinstance(source, Path)
        else hashlib.sha256(np.ascontiguousarray(source).tobytes()).hexdigest()
        for name, source in sources.items()
    }
    said = json.dumps([job, content], sort_keys=True).encode()
    return hashlib.sha256(said + app + sys.version.encode()).hexdigest()


def open_job_folder(folder: Path, identity: str) -> str:
    """Go on in a scratch folder only if it is of this very job and code."""
    stamp = folder / "identity"
    if folder.exists() and (not stamp.exists() or stamp.read_text(encoding="utf-8") != identity):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(stamp, identity)
    return identity
