"""Where things lie: the checkout, the artifact store, the reports."""

import os
from pathlib import Path


def reports_folder() -> Path:
    """Return the folder that reports go into."""
    return Path(os.environ.get("NIGHTJAR_REPORTS") or ROOT / "reports").absolute()


def shown(path: Path) -> str:
    """Return a path as people are told it: from the project where it lies there."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def store_folder() -> Path:
    """Name the folder of this checkout's store, or the one that NIGHTJAR_STORE asks for.

    Where that is a URL, the folder is its cache: NIGHTJAR_STORE_CACHE, or this checkout's own.
    """
    named = os.environ.get("NIGHTJAR_STORE" if remote_url() is None else "NIGHTJAR_STORE_CACHE")
    return Path(named or ROOT / "artifacts")


def remote_url() -> str | None:
    """Return the URL that NIGHTJAR_STORE asks for, None where it names a folder or nothing."""
    named = os.environ.get("NIGHTJAR_STORE", "")
    return named if "://" in named else None


ROOT = Path(__file__).resolve().parent.parent
