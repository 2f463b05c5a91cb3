"""Where pages and results are put for people: reports/ of the project, or NIGHTJAR_REPORTS."""

import os
from pathlib import Path

from nightjar.closure import ROOT


def reports_folder() -> Path:
    """Return the folder that reports go into."""
    return Path(os.environ.get("NIGHTJAR_REPORTS") or ROOT / "reports").absolute()


def shown(path: Path) -> str:
    """Return a path as people are told it: from the project where it lies there."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
