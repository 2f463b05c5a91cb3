"""Files at a URL that fsspec supports (S3, GCS, a shared folder): read, write, list and remove whole files."""

import contextlib
import datetime
import errno
import hashlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nightjar.errors import BadOptions, Missing, NightjarError, StoreBroken
from nightjar.files import storage_errors

ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "adl"})  # an object appears only when it is complete
EXTRAS = {"s3": "nightjar[remote]", "s3a": "nightjar[remote]"}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TIME_KEYS = ("LastModified", "mtime", "last_modified", "updated", "created")  # differs between file systems


class RemoteFile(NamedTuple):
    """A file in a bucket: its name below the bucket's URL, size, and time of writing in seconds since 1970."""

    name: str
    bytes: int
    written_s: float


class Bucket:
    """Files below a URL, by name. Listings are not cached; the constructor does not connect."""

    def __init__(self, url: str) -> None:
        """Raises BadOptions for an unknown protocol or a URL with a password, Missing if a library is missing."""
        import fsspec

        parts = urlsplit(url)
        if parts.password is not None:
            raise BadOptions(
                f"NIGHTJAR_STORE={parts.scheme}://…@{parts.hostname}{parts.path} holds a password, which would appear "
                "in logs: remove it and pass credentials as the protocol expects (for s3: AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
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
                "fsspec supports"
            ) from error
        self.url, self.root = url.rstrip("/"), str(root).rstrip("/")
        self.atomic = parts.scheme in ATOMIC

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if it does not exist."""
        with self._connected(), contextlib.suppress(FileNotFoundError):
            found: bytes = self.files.cat_file(self._path(name))
            return found
        return None

    def stat(self, name: str) -> RemoteFile | None:
        """Return a file's size and time, None if it does not exist."""
        with self._connected(), contextlib.suppress(FileNotFoundError):
            return _remote_file(name, self.files.info(self._path(name)))
        return None

    def sha256(self, name: str) -> str | None:
        """Return the sha256 of a file's content, None if it does not exist."""
        with (
            self._connected(),
            contextlib.suppress(FileNotFoundError),
            self.files.open(self._path(name), "rb") as file,
        ):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file; a reader sees the old or the new content."""
        with self._writing(name) as path:
            self.files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it exists; return whether this call created it.

        If several try at once, exactly one succeeds on S3 and in folders; on other protocols several may.
        """
        with self._connected():
            path = self._path(name)
            self._make_folder(path)
            try:
                self.files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, ValueError, TypeError):  # the protocol does not support this mode
                if self.files.exists(path):
                    return False
                self.files.pipe_file(path, data)
        return True

    def upload(self, local: Path, name: str) -> None:
        """Write a file of any size; it gets its name when it is complete."""
        with self._writing(name) as path:
            self.files.put_file(str(local), path)

    def download(self, name: str, local: Path) -> bool:
        """Fetch a file to a local path; return whether it exists. An interrupted download leaves a partial file."""
        with self._connected(), contextlib.suppress(FileNotFoundError):
            self.files.get_file(self._path(name), str(local))
            return True
        return False

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with self._connected(), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def list(self, folder: str) -> Iterator[RemoteFile]:
        """Yield every file below a folder, sorted by name."""
        found: dict[str, Any] = {}
        with self._connected(), contextlib.suppress(FileNotFoundError):
            found = self.files.find(self._path(folder), detail=True)
        start = len(self._path("")) if self.root else 0
        for path, info in sorted(found.items()):
            yield _remote_file(path[start:].lstrip("/"), info)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _make_folder(self, path: str) -> None:
        if not self.atomic:
            self.files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """Yield a path to write to, and rename it to its name afterwards where writes are not atomic."""
        with self._connected():
            path = self._path(name)
            if self.atomic:
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
    def _connected(self) -> Iterator[None]:
        """Turn every protocol's errors into StoreBroken."""
        try:
            yield
        except NightjarError:
            raise
        except Exception as error:  # protocols share no error class
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                with storage_errors():
                    raise
            reason = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
            raise StoreBroken(
                f"the store {self.url} cannot be reached or used ({reason}): check its address, the network and the "
                "credentials, then run the same command again; finished results are in the local cache"
            ) from error


def _remote_file(name: str, info: dict[str, Any]) -> RemoteFile:
    written = next((info[key] for key in TIME_KEYS if info.get(key) is not None), 0.0)
    seconds = written.timestamp() if isinstance(written, datetime.datetime) else float(written)
    return RemoteFile(name, int(info["size"] or 0), seconds)
