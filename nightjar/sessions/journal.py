"""The journal of a session on this host: one line per finished clip, written after the clip's files are on disk."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nightjar.files import digest_file, read_whole_lines, storage_errors, sync

Result = dict[str, Any]


class Journal:
    """Keep the results of finished clips with the sha256 of their files; a kill at any moment loses none of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path, self._lock = folder, folder / "finished.jsonl", threading.Lock()
        self.results: dict[str, Result] = {}
        for text in read_whole_lines(self._path):
            try:
                entry = json.loads(text)
                name, files = entry["line"]["id"], dict(entry["files"])
            except (ValueError, TypeError, KeyError):  # damaged: the clip runs again
                continue
            # Files are verified again: the disk may have been full, or a byte may have changed since.
            if all(
                (folder / path).is_file() and digest_file(folder / path) == sha256 for path, sha256 in files.items()
            ):
                self.results[name] = entry["line"]
            else:
                self.results.pop(name, None)

    def add(self, result: Result, files: Mapping[str, str]) -> None:
        """Record a finished clip; files: sha256 by path in the folder, already written."""
        with self._lock, storage_errors():
            for name in files:
                sync(self.folder / name)
            with self._path.open("a", encoding="utf-8") as file:
                print(json.dumps({"line": result, "files": dict(files)}), file=file, flush=True)
                os.fsync(file.fileno())
            self.results[result["id"]] = result
