"""A bundle: everything that a board needs to transcribe, with a script, and a manifest of its origin."""

import base64
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import nightjar.device.part_runners
import nightjar.device.pause_splitter
import nightjar.device.transcribe  # all three go into a bundle, so their code is part of every key that makes one
from nightjar.errors import BadInput
from nightjar.files import digest, digest_file, read_json
from nightjar.graphs.onnx_file import copy_graph
from nightjar.paths import ROOT
from nightjar.store.fingerprint import closure

FORMAT = 1
PYTHON = "3.10"  # the decode loop's syntax, as a session's
MANIFEST = "manifest.json"
SCRIPT = "transcribe.py"


class PortSummary(BaseModel, frozen=True):
    """The results of a port that describe its binary; figures that change with each run are left out."""

    verdict: str
    tier: str
    unit: str
    wer: float
    wer_float: float
    wer_stock: float
    delta_wer: float
    interval: tuple[float, float]
    clips: int
    words: int
    skipped: int
    command: str
    made_from: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "PortSummary":
        """Select from a port's results what does not depend on the run."""
        keys = ("stage", "key", "sha256", "libraries", "sdk", "board")
        made = {name: {part: record[part] for part in keys} for name, record in results["made_from"].items()}
        return cls.model_validate({**results, "made_from": made})


class Manifest(BaseModel, frozen=True):
    """The description of a bundle; `runtimes` and `port` say where it came from and are not part of its id."""

    format: int
    id: str
    model: str
    family: str
    target: str
    precision: str
    language: str
    window_s: float
    python: str
    runtimes: dict[str, str]
    files: dict[str, tuple[int, str]]
    port: PortSummary


def write_bundle(
    out: Path,
    *,
    binary: Path,
    modules: Sequence[str],
    tokens: Mapping[int, bytes],
    runtimes: Mapping[str, str],
    model: str,
    language: str,
    port: PortSummary,
) -> Manifest:
    """Write a bundle's files into the empty folder `out`, the manifest last.

    binary: as in docs/files.md; modules: the decode loop and the runners; runtimes: versions that the port ran with.
    The id hashes the content: the same binary, code and settings have the same one.
    """
    described, built = read_json(binary / "model.json"), read_json(binary / "binary.json")
    for name in sorted({"model.json", "binary.json", *(part["file"] for part in built["parts"].values())}):
        copy_graph(binary / name, out)
    for path in binary.glob("*_embedding.npy"):
        shutil.copyfile(path, out / path.name)
    devices = (nightjar.device.part_runners, nightjar.device.pause_splitter)
    for name in closure([*modules, *(module.__name__ for module in devices)]).files:
        for parent in Path(name).parents[:-1]:
            (out / "lib" / parent).mkdir(parents=True, exist_ok=True)
            (out / "lib" / parent / "__init__.py").touch()
        shutil.copyfile(ROOT / name, out / "lib" / name)
    (out / SCRIPT).write_bytes(Path(nightjar.device.transcribe.__file__).read_bytes())
    listed = (base64.b64encode(text) + b" %d\n" % number for number, text in sorted(tokens.items()))
    (out / "tokens.txt").write_bytes(b"".join(listed))
    files = {
        path.relative_to(out).as_posix(): (path.stat().st_size, digest_file(path))
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    content = {
        "format": FORMAT,
        "model": model,
        "family": described["family"],
        "target": built["target"],
        "precision": built["precision"],
        "language": language,
        "window_s": described["recipe"]["window_s"],
        "python": PYTHON,
        "files": files,
    }
    manifest = Manifest(**content, id=digest(content)[:16], runtimes=dict(runtimes), port=port)
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest; raises BadInput for a folder that is not a bundle."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is not a bundle ({type(error).__name__}): run `nightjar deploy` again") from error
