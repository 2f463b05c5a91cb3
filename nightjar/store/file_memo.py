"""Remember what was read from files: as long as a file is the same one, untouched, it is not read again.

A memo saves time and decides nothing: a file whose size, mtime, ctime or inode differs from when it was read is read
again, and ctime cannot be set back. One that changed a moment before it was read is not remembered, since it could
change again within the same tick of the file system's clock.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightjar.paths import store_folder

SETTLED_NS = 2_000_000_000  # no file system's clock is coarser


class FileMemo:
    """JSON values of one kind, by file, in the store under `.memo`; lost or damaged, they are made again."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        """Name the memo, and what makes a value of a path; its module edited, another memo is used."""
        code = Path(make.__code__.co_filename).read_bytes()
        self.file, self.make = f"{name}-{hashlib.sha256(code).hexdigest()[:12]}.json", make
        self.path: Path | None = None
        self.kept: dict[str, list[Any]] = {}
        self.new = False

    def get(self, path: Path, *arguments: Any) -> Any:
        """Return a file's value, remembered or made with `arguments`; what that raises is not remembered."""
        self._open()
        try:
            stat = path.stat()
        except OSError:
            return self.make(path, *arguments)
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self.kept.get(str(path))
        if isinstance(known, list) and known[:1] == [stamp]:
            return known[1]
        read_ns = time.time_ns()
        value = self.make(path, *arguments)
        if read_ns - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS:
            self.kept[str(path)] = [stamp, value]
            self.new = True
        return value

    def save(self) -> None:
        """Write what is new, without files that are gone; a store that cannot be written costs time, not the run."""
        if not self.new or self.path is None:
            return
        self.new = False
        kept = {name: entry for name, entry in self.kept.items() if Path(name).exists()}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(kept), encoding="utf-8")
            temporary.rename(self.path)

    def _open(self) -> None:
        path = store_folder() / ".memo" / self.file
        if path == self.path:
            return
        self.path, self.kept, self.new = path, {}, False
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.kept = kept if isinstance(kept, dict) else {}
