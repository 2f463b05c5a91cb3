"""Cache values computed from files, valid as long as a file is untouched.

The cache only saves time. A file whose size, mtime, ctime or inode changed is read again, and ctime cannot be set back.
A file that changed within two seconds before it was read is not cached: it could change again within one tick of the
file system's clock.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightjar.files import read_json_object, write_atomic
from nightjar.paths import store_folder

SETTLED_NS = 2_000_000_000  # no file system's clock is coarser


class FileMemo:
    """JSON values of one kind by file, in the store under `.memo`; a lost or damaged memo is made again."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        """make: computes the value of a path. An edit of its module starts a new memo."""
        code = Path(make.__code__.co_filename).read_bytes()
        self.file, self.make = f"{name}-{hashlib.sha256(code).hexdigest()[:12]}.json", make
        self.path: Path | None = None
        self.entries, self.changed = dict[str, Any](), False

    def get(self, path: Path, *arguments: Any) -> Any:
        """Return a file's value, cached or computed with `arguments`; exceptions are not cached."""
        memo = store_folder() / ".memo" / self.file
        if memo != self.path:  # the first call, or another store
            self.path, self.entries, self.changed = memo, read_json_object(memo), False
        try:
            stamp = file_stamp(path)
        except OSError:
            return self.make(path, *arguments)
        entry = self.entries.get(str(path))
        if isinstance(entry, list) and entry[:1] == [stamp]:
            return entry[1]
        read_ns = time.time_ns()
        value = self.make(path, *arguments)
        _, mtime_ns, ctime_ns, _ = stamp
        if read_ns - max(mtime_ns, ctime_ns) > SETTLED_NS:
            self.entries[str(path)] = [stamp, value]
            self.changed = True
        return value

    def save(self) -> None:
        """Write new values and drop deleted files; a store that is not writable costs time but stops no run."""
        if not self.changed or self.path is None:
            return
        self.changed = False
        existing = {name: entry for name, entry in self.entries.items() if Path(name).exists()}
        with contextlib.suppress(OSError):
            write_atomic(self.path, json.dumps(existing))


def file_stamp(path: Path) -> list[int]:
    """Return size, mtime, ctime and inode of a file: equal stamps mean an untouched file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
