"""A place that fsspec reaches (S3 and its kin, a shared folder): whole files in and out, every failure one line."""

import contextlib
import datetime
import errno
import re
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nightjar.errors import BadOptions, Missing, NightjarError, StoreBroken
from nightjar.files import storage_errors

WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "adl"})  # a file appears there when all of it is there
EXTRAS = {"s3": "nightjar[remote]", "s3a": "nightjar[remote]"}
CHUNK = 16 << 20
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
NAMES = ("LastModified", "mtime", "last_modified", "updated", "created")  # what file systems call the time of writing


class RemoteFile(NamedTuple):
    """A file there: its name below the bucket, bytes, and seconds since 1970 when it was written."""

    name: str
    bytes: int
    written_s: float


class Bucket:
    """Read, write, list and remove files by their names below a URL; nothing is cached, nothing is reached before."""

    def __init__(self, url: str) -> None:
        """Raises BadOptions for a URL of no protocol or with a password, Missing without its library."""
        import fsspec

        parts = urlsplit(url)
        if parts.password is not None:
            raise BadOptions(
                f"NIGHTJAR_STORE={parts.scheme}://…@{parts.hostname}{parts.path} holds a password, and ends up in "
                "logs: give it by the protocol's own way (AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY for s3)"
            )
        settings: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if parts.scheme in ("s3", "s3a"):
            settings["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}
        try:
            self.files, root = fsspec.core.url_to_fs(url, **settings)
        except ImportError as error:
            install = EXTRAS.get(parts.scheme, str(error))
            raise Missing(
                f"NIGHTJAR_STORE={url} needs a library that is not installed: "
                f"pip install -c constraints.txt '{install}'"
            ) from error
        except ValueError as error:
            raise BadOptions(
                f"NIGHTJAR_STORE={url}: {error}; give a folder, file:///folder, s3://bucket/prefix or another URL that "
                "fsspec knows"
            ) from error
        self.url, self.root = url.rstrip("/"), str(root).rstrip("/")
        self.whole = parts.scheme in WHOLE

    def read(self, name: str) -> bytes | None:
        """Return a small file, None where there is none."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            found: bytes = self.files.cat_file(self._path(name))
            return found
        return None

    def look(self, name: str) -> RemoteFile | None:
        """Return what is known of a file, None where there is none."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            return _seen(name, self.files.info(self._path(name)))
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file; a reader sees the old one or the new one."""
        with self._writing(name) as path:
            self.files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one: return whether it was us.

        Of all who try at once one succeeds, where the protocol can tell (S3, folders); else perhaps several.
        """
        with self._reaching():
            path = self._path(name)
            self._make_folder(path)
            try:
                self.files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, ValueError, TypeError):  # a protocol that knows no such mode
                if self.files.exists(path):
                    return False
                self.files.pipe_file(path, data)
        return True

    def upload(self, local: Path, name: str) -> None:
        """Write a file of any size; until it is whole it has another name, or none."""
        with self._writing(name) as path:
            self.files.put_file(str(local), path)

    def download(self, name: str, local: Path) -> bool:
        """Fetch a file to a local path; return whether there is one. What was cut off stays half."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self.files.get_file(self._path(name), str(local))
            return True
        return False

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file piece by piece, the last one empty; nothing where there is none."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            size = int(self.files.info(self._path(name))["size"])
            for start in range(0, size, CHUNK):
                yield self.files.cat_file(self._path(name), start=start, end=min(start + CHUNK, size))
            yield b""

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def list(self, folder: str) -> Iterator[RemoteFile]:
        """Yield every file below a folder, by name."""
        with self._reaching():
            try:
                found = self.files.find(self._path(folder), detail=True)
            except FileNotFoundError:
                found = {}
        start = len(self._path("")) if self.root else 0
        for path, info in sorted(found.items()):
            yield _seen(path[start:].lstrip("/"), info)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _make_folder(self, path: str) -> None:
        if not self.whole:
            self.files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """Give a path to write to, and bring what was written there to its name."""
        with self._reaching():
            path = self._path(name)
            if self.whole:
                yield path
                return
            self._make_folder(path)
            temporary = f"{path}.{secrets.token_hex(4)}.part"
            try:
                yield temporary
                self.files.mv(temporary, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self.files.rm_file(temporary)
                raise

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn whatever a protocol raises into StoreBroken, with the reason in its own words."""
        try:
            yield
        except NightjarError:
            raise
        except Exception as error:  # every protocol has errors of its own, and they share no class
            if isinstance(error, OSError) and error.errno in DISK:
                with storage_errors():
                    raise
            reason = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
            raise StoreBroken(
                f"the store {self.url} cannot be reached or used ({reason}): check its address, the network and the "
                "credentials, then run the same command again; what is finished lies in the cache"
            ) from error


def _seen(name: str, info: dict[str, Any]) -> RemoteFile:
    written = next((info[key] for key in NAMES if info.get(key) is not None), 0.0)
    seconds = written.timestamp() if isinstance(written, datetime.datetime) else float(written)
    return RemoteFile(name, int(info["size"] or 0), seconds)
