"""What of a session is safe on this host: a line per finished clip, written when all that belongs to it is here."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nightjar.files import digest_file, storage_errors

Line = dict[str, Any]


class Journal:
    """Keep the lines of finished clips, with the sha256 of their files; a kill at any moment loses none of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path, self._writing = folder, folder / "finished.jsonl", threading.Lock()
        self.lines: dict[str, Line] = {}
        for entry in _entries(self._path):
            # Looked at again: a disk that was full, or a byte that fell over since.
            if all(_is(folder / name, sha256) for name, sha256 in entry["files"].items()):
                self.lines[entry["line"]["id"]] = entry["line"]
            else:
                self.lines.pop(entry["line"]["id"], None)

    def add(self, line: Line, files: Mapping[str, str]) -> None:
        """Write down a finished clip: its line, and its files (path in the folder, sha256), which are here already."""
        with self._writing, storage_errors():
            for name in files:
                _sync(self.folder / name)
            with self._path.open("a", encoding="utf-8") as file:
                print(json.dumps({"line": line, "files": dict(files)}), file=file, flush=True)
                os.fsync(file.fileno())
            self.lines[line["id"]] = line


def _entries(path: Path) -> list[dict[str, Any]]:
    """Read whole entries, and cut off a half-written last one."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with storage_errors():
            path.write_bytes(whole)
    found = []
    for text in whole.split(b"\n")[:-1]:
        try:
            entry = json.loads(text)
            if isinstance(entry["line"]["id"], str) and isinstance(entry["files"], dict):
                found.append(entry)
        except (ValueError, TypeError, KeyError):  # damaged: its clip is done again
            continue
    return found


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and digest_file(path) == sha256


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
