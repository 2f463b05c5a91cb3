"""Paths: the checkout, the artifact store, the reports."""

import os
from pathlib import Path


def reports_folder() -> Path:
    """Return the folder that reports go into."""
    return Path(os.environ.get("NIGHTJAR_REPORTS") or ROOT / "reports").absolute()


def shown(path: Path) -> str:
    """Return a path as messages show it: relative to the checkout where it is inside."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def store_folder() -> Path:
    """Return the folder of the store: NIGHTJAR_STORE, or artifacts/ of this checkout.

    Where NIGHTJAR_STORE is a URL, the folder is its cache: NIGHTJAR_STORE_CACHE, or artifacts/.
    """
    named = os.environ.get("NIGHTJAR_STORE" if remote_url() is None else "NIGHTJAR_STORE_CACHE")
    return Path(named or ROOT / "artifacts")


def remote_url() -> str | None:
    """Return the URL in NIGHTJAR_STORE, None where it names a folder or is not set."""
    named = os.environ.get("NIGHTJAR_STORE", "")
    return named if "://" in named else None


ROOT = Path(__file__).resolve().parent.parent
