"""Files: digests, atomic writes, files that are appended to, and disk errors as one line."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nightjar.errors import StoreBroken


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mtime_ns(path: Path) -> int:
    """Return when a file was last written, 0 where there is no file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn a full or unwritable disk into StoreBroken."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreBroken(
                f"{error.filename or 'the artifact store'}: {os.strerror(error.errno)}; "
                "free some space or set NIGHTJAR_STORE to another folder, then run the same command again"
            ) from error
        raise


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one for a file that is missing or damaged."""
    try:
        loaded = read_json(path)
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def read_whole_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file that is appended to, none where there is no file.

    A last line that a kill cut short is removed from the file.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with storage_errors():
            path.write_bytes(whole)
    return whole.split(b"\n")[:-1]


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
